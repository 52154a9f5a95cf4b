"""SimCLR's views: pairs of one image, a pure function of seed and epoch, within their bounds."""

import pytest
import torch

from kdbench.data import views as views_module
from kdbench.data.image_sets import ImageSet
from kdbench.data.views import TwoViews
from kdbench.suite.specs import Pretraining, Recipe


CPU = torch.device("cpu")
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def views(images, digits):
    def make(seed="seed", train=images, **how):
        flip = how.pop("flip", False)
        recipe = Recipe(epochs=1, batch=16, lr=0.1, flip=flip, **UNIT)
        return TwoViews(train, Pretraining(recipe=recipe, **how), digits, (seed,), CPU)

    return make


def test_a_batch_holds_two_views_of_each_image(views, images):
    batches = list(views().epoch(1))
    assert [len(batch) for batch in batches] == [32, 32, 32, 32, 12]
    seen = torch.cat([batch.indices[: len(batch) // 2] for batch in batches])
    assert sorted(seen.tolist()) == list(range(len(images)))
    for batch in batches:
        first, second = batch.indices.chunk(2)
        assert torch.equal(first, second)
        assert torch.equal(batch.labels, images.labels[batch.indices])
        views_of_one, views_of_other = batch.images.chunk(2)
        assert not torch.equal(views_of_one, views_of_other)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1.0001


def test_an_epoch_can_be_replayed(views):
    for left, right in zip(views().epoch(3), views().epoch(3), strict=True):
        assert torch.equal(left.images, right.images)
    first, other, later = (next(iter(v.epoch(e))) for v, e in ((views(), 1), (views("x"), 1), (views(), 2)))
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, later.images)


def smooth(count=40):
    """Images that bilinear sampling can follow: a slope in each direction, other in each channel."""
    ramp = torch.linspace(40, 200, 32)
    image = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, ramp.flip(0).expand(32, 32)])
    return ImageSet(image.round().to(torch.uint8).repeat(count, 1, 1, 1), torch.zeros(count, dtype=torch.long), 10)


def test_crops_keep_at_least_the_smallest_area(views):
    whole = smooth()
    spans = torch.cat([_spans(batch.images) for batch in views(train=whole, smallest_crop=0.25, colour=0.0).epoch(1)])
    area = spans[:, 0] * spans[:, 1]
    coloured = area > 0  # a grey view has lost its slopes
    assert area[coloured].min() > 0.2
    assert area[coloured].max() > 0.8
    ratio = spans[coloured, 0] / spans[coloured, 1]
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4


def _spans(images):
    """The share of the whole slope that each view covers, across and down; 0 for grey views."""
    across = images[:, 0].mean(1)
    down = images[:, 1].mean(2)
    grey = (images[:, 0] - images[:, 1]).abs().amax((1, 2)) < 1e-3
    spans = torch.stack([across[:, -1] - across[:, 0], down[:, -1] - down[:, 0]], dim=1) * 255 / 160
    return torch.where(grey[:, None], 0.0, spans)


def test_without_crop_and_colour_only_grey_is_left(views, images):
    for batch in views(smallest_crop=1.0, colour=0.0).epoch(1):
        pixels = images.images[batch.indices].float() / 255
        grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(pixels)
        # the crop's ratio still varies, so only views whose pixels were not moved can be compared
        same = ((batch.images - pixels).abs().amax((1, 2, 3)) < 0.02) | (
            (batch.images - grey).abs().amax((1, 2, 3)) < 0.02
        )
        assert not same.all(), "a ratio other than 1 cuts something off"


@pytest.mark.parametrize(("colour", "share"), [(0.0, 0.0), (1.0, 0.8)])
def test_colours_change_in_four_of_five(views, colour, share):
    flat = ImageSet(torch.full((400, 3, 32, 32), 100, dtype=torch.uint8), torch.zeros(400, dtype=torch.long), 10)
    shown = torch.cat([batch.images[:, :, 0, 0] for batch in views(train=flat, colour=colour).epoch(1)])
    changed = ((shown - 100 / 255).abs().amax(1) > 0.005).float().mean().item()
    assert abs(changed - share) < 0.06


def test_flips_only_where_the_recipe_flips(views):
    for flip, expected in ((False, 0.0), (True, 0.5)):
        spans = torch.cat(
            [_spans(batch.images)[:, 0] for batch in views(train=smooth(200), flip=flip, colour=0.0).epoch(1)]
        )
        mirrored = (spans[spans != 0] < 0).float().mean().item()
        assert abs(mirrored - expected) < 0.1


def test_colours_are_changed_at_a_share_of_the_authors_strength(views, monkeypatch):
    """Factors 1 ± 0.8 and a fifth of a turn either way at full strength, half of it at 0.5; a fifth of the views stays."""
    given = []
    monkeypatch.setattr(views_module, "color_jitter", lambda images, *factors: given.append(factors) or images)
    for _ in views(train=smooth(1000), colour=0.5).epoch(1):
        pass
    *factors, hue = (torch.cat(each).flatten() for each in zip(*given, strict=True))
    for values, middle, most in (*((factor, 1.0, 0.4) for factor in factors), (hue, 0.0, 0.1)):
        assert (values == middle).float().mean().item() == pytest.approx(0.2, abs=0.03)
        for extreme, end in ((values.min(), middle - most), (values.max(), middle + most)):
            assert extreme.item() == pytest.approx(end, abs=0.03 * most)


def test_a_fifth_of_the_views_is_grey(views):
    shown = torch.cat([batch.images for batch in views(train=smooth(500), colour=0.0).epoch(1)])
    grey = (shown[:, 0] - shown[:, 1]).abs().amax((1, 2)) < 1e-3
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.04)
