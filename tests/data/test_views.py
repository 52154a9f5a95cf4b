"""Transformed copies: what each kind does to an image, what is drawn, and that the images beside them stay as they were."""

import colorsys
import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from kdbench.data import views
from kdbench.data.batch import VIEWS_PER_IMAGE
from kdbench.data.image_sets import ImageSet
from kdbench.data.preprocess import Normalisation
from kdbench.data.stream import Stream
from kdbench.data.views import (
    TRANSFORMS,
    Draws,
    adjust_hue,
    color_jitter,
    interleave_views,
    log_uniform,
    randint_below,
    rotate90,
)
from kdbench.errors import BadInput
from kdbench.suite.specs import Preprocessing


CPU = torch.device("cpu")
KINDS = sorted(TRANSFORMS)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def made(kind, pixels, seed=0):
    transform = TRANSFORMS[kind]
    draws = transform.draw(len(pixels) // VIEWS_PER_IMAGE, torch.Generator().manual_seed(seed))
    return transform.apply(pixels, Draws(draws, draws)), transform.labels(draws), draws


def test_rotations_are_counter_clockwise_and_in_order(pixels):
    copies, labels, _ = made("rotations", pixels)
    assert labels.tolist() == [1, 2, 3] * 4
    for image, copy, turn in zip(pixels, copies, labels.tolist(), strict=True):
        assert torch.equal(copy, torch.rot90(image, turn, (1, 2)))
    assert torch.equal(copies[0][:, 0, :], pixels[0][:, :, -1]), "the right edge becomes the upper one"


def test_a_jigsaw_moves_quarters(pixels):
    many = pixels.repeat(50, 1, 1, 1)
    copies, labels, _ = made("jigsaw", many)
    orders = list(permutations(range(4)))
    assert set(labels.tolist()) == set(range(24))
    corners = [
        (slice(0, 4), slice(0, 4)),
        (slice(0, 4), slice(4, 8)),
        (slice(4, 8), slice(0, 4)),
        (slice(4, 8), slice(4, 8)),
    ]
    for image, copy, label in zip(many, copies, labels.tolist(), strict=True):
        for place, source in enumerate(orders[label]):
            assert torch.equal(copy[:, *corners[place]], image[:, *corners[source]])
    with pytest.raises(BadInput, match="sides have halves, not 7 pixels"):
        made("jigsaw", pixels[:, :, :7, :7])


def test_the_pool_of_four(pixels):
    many = pixels.repeat(100, 1, 1, 1)
    copies, labels, draws = made("four", many)
    assert copies.shape == many.shape
    assert 0 <= copies.min() <= copies.max() <= 255.001
    shares = torch.bincount(labels, minlength=5) / len(labels)
    assert shares[0] == 0
    assert (shares[1:] - 0.25).abs().max() < 0.05
    turns = randint_below(draws[:, 1], 3) + 1
    changed = (copies - many).abs().flatten(1).mean(1)
    for image, copy, label, turn in zip(many, copies, labels.tolist(), turns.tolist(), strict=True):
        if label == 1:
            luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
            assert torch.allclose(copy, luma.expand(3, 8, 8), atol=1e-3)
        elif label == 2:
            assert torch.allclose(copy, torch.rot90(image, turn, (1, 2)).float(), atol=1e-3)
    assert (changed[labels >= 3] > 0.5).float().mean() > 0.95


def test_a_part_is_a_part_and_colours_keep_the_place_of_edges():
    ramp = torch.arange(8.0).mul(20).expand(3, 8, 8).repeat(3000, 1, 1, 1)
    copies, labels, _ = made("four", ramp)
    parts, recoloured = copies[labels == 3], copies[labels == 4]
    spans = (parts.amax((1, 2, 3)) - parts.amin((1, 2, 3))) / 140
    assert spans.min() < 0.4
    assert spans.max() <= 1.01
    assert (recoloured.diff(dim=-1) >= -1e-3).all()
    assert recoloured.mean((1, 2, 3)).std() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_makes_them_and_leaves_the_images_as_they_were(images, recipe, digits, kind):
    stream = Stream(images, recipe, digits, ("seed",), CPU)
    plain, with_copies = list(stream.epoch(2)), list(stream.epoch(2, transforms=[kind]))
    again = list(Stream(images, recipe, digits, ("seed",), CPU).epoch(2, transforms=KINDS))
    for one, two, three in zip(plain, with_copies, again, strict=True):
        assert not one.views
        assert list(two.views) == [kind]
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.indices, two.indices)
        assert two.views[kind].images.shape == (VIEWS_PER_IMAGE * len(two), 3, 32, 32)
        assert two.views[kind].teacher_images is None
        assert torch.equal(two.views[kind].images, three.views[kind].images)
        assert torch.equal(two.views[kind].labels, three.views[kind].labels)
    other = next(stream.epoch(3, transforms=[kind]))
    assert not torch.equal(with_copies[0].views[kind].images, other.views[kind].images)


def test_copies_share_the_flip_and_have_crops_of_their_own(images, recipe, digits):
    """Each copy, turned back, is one of the crops of its image, flipped like the image itself."""
    normalise = Normalisation(recipe, digits, CPU)
    padded = F.pad(images.images, (2, 2, 2, 2))
    offsets, flips = [], []
    for batch in Stream(images, recipe, digits, ("seed",), CPU).epoch(1, transforms=["rotations"]):
        copies = batch.views["rotations"]
        views = interleave_views(batch.images, copies.images)
        for row, view in enumerate(views):
            index, turn = batch.indices[row // 4], row % 4
            assert row % 4 == 0 or copies.labels[3 * (row // 4) + row % 4 - 1] == turn
            upright = torch.rot90(view, -turn, (1, 2))
            windows = padded[index].unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
            both = torch.stack([normalise(windows), normalise(windows).flip(-1)])
            found = (both - upright).abs().amax((2, 3, 4)).lt(1e-5).nonzero()
            assert len(found) == 1
            flips.append(found[0, 0].item())
            offsets.append(found[0, 1].item())
    flips, offsets = torch.tensor(flips).view(-1, 4), torch.tensor(offsets).view(-1, 4)
    assert (flips == flips[:, :1]).all()
    assert 0.2 < flips.float().mean() < 0.8
    assert (offsets[:, 1:] == offsets[:, :1]).float().mean() < 0.2
    assert offsets.unique().numel() == 25


def test_the_teachers_own_view_is_transformed_alike(images, recipe, digits):
    same = Preprocessing(crop_padding=0, flip=False)
    plain = recipe.model_copy(update={"crop_padding": 0, "flip": False})
    for kind in KINDS:
        stream = Stream(images, plain, digits, ("seed",), CPU, same)
        copies = next(stream.epoch(1, transforms=[kind])).views[kind]
        assert torch.equal(copies.images, copies.teacher_images)
        assert next(stream.epoch(1, with_teacher=False, transforms=[kind])).views[kind].teacher_images is None
    large = Stream(images, recipe, digits, ("seed",), CPU, Preprocessing(size=48, crop_padding=4, flip=True))
    assert next(large.epoch(1, transforms=["four"])).views["four"].teacher_images.shape == (48, 3, 48, 48)


def test_each_image_is_followed_by_its_copies():
    images, copies = torch.arange(4.0).view(4, 1), 10 + torch.arange(12.0).view(12, 1)
    rows = interleave_views(images, copies).flatten().tolist()
    assert rows == [0, 10, 11, 12, 1, 13, 14, 15, 2, 16, 17, 18, 3, 19, 20, 21]


def test_an_image_that_is_not_turned_stays(pixels):
    assert torch.equal(rotate90(pixels, torch.zeros(12, dtype=torch.long)), pixels)


def test_a_short_last_batch_has_its_copies(images, recipe, digits):
    stream = Stream(ImageSet(images.images[:18], images.labels[:18], 10), recipe, digits, ("seed",), CPU)
    assert [len(b.views["jigsaw"].labels) for b in stream.epoch(1, transforms=["jigsaw"])] == [48, 6]


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.5])
@pytest.mark.parametrize(
    ("number", "enhancer"), list(enumerate((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)))
)
def test_brightness_contrast_and_saturation_are_pillows(pixels, number, enhancer, factor):
    """To within the rounding of 8 bits."""
    factors = [torch.ones(len(pixels), 1, 1, 1) for _ in range(3)]
    factors[number] *= factor
    changed = color_jitter(pixels.float() / 255, *factors, torch.zeros(len(pixels), 1, 1, 1))
    for image, mine in zip(pixels, changed, strict=True):
        picture = enhancer(Image.fromarray(image.permute(1, 2, 0).numpy())).enhance(factor)
        theirs = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert (255 * mine - theirs).abs().max() < 2


def test_a_hue_is_turned_about_the_grey_axis():
    image = 0.3 + 0.4 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    third = adjust_hue(image, torch.tensor([math.pi / 3, 2 * math.pi]))
    for before, after, angle in zip(image, third, (math.pi / 3, 0.0), strict=True):
        for old, new in zip(before.flatten(1).T.tolist(), after.flatten(1).T.tolist(), strict=True):
            luma, i, q = colorsys.rgb_to_yiq(*old)
            turned = (i * math.cos(angle) - q * math.sin(angle), i * math.sin(angle) + q * math.cos(angle))
            assert colorsys.rgb_to_yiq(*new) == pytest.approx((luma, *turned), abs=0.01)


def test_log_uniform_numbers_and_their_inverses_are_alike():
    numbers = log_uniform(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), 16.0)
    assert numbers.tolist() == pytest.approx([1 / 16, 1 / 4, 1, 4, 16])


def test_the_colours_of_the_pool_of_four_have_sskds_ranges(pixels, monkeypatch):
    given = []
    monkeypatch.setattr(views, "color_jitter", lambda images, *factors: given.append(factors) or images)
    made("four", pixels.repeat(1000, 1, 1, 1))
    ((*factors, hue),) = given
    for values, low, high in (*((factor, 0.6, 1.4) for factor in factors), (hue, -0.1, 0.1)):
        margin = 0.02 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high


def test_the_parts_of_the_pool_of_four_have_sskds_ranges(pixels, monkeypatch):
    given = []
    monkeypatch.setattr(views, "crop", lambda images, *how: given.append(how) or images)
    made("four", pixels.repeat(1000, 1, 1, 1))
    ((area, ratio, *place),) = given
    for values, low, high in (
        (area, 0.08, 1),
        (ratio.log2(), -math.log2(4 / 3), math.log2(4 / 3)),
        *((each, 0, 1) for each in place),
    ):
        margin = 0.02 * (high - low)
        assert low - 1e-6 <= values.min() < low + margin
        assert high - margin < values.max() <= high + 1e-6
