"""Cuts of images of any size, against torchvision's transforms and against what they promise."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.augment import random_box, random_resized_crop
from kdbench.data.preprocess import center_crop, import_torchvision, pixels


def image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (300, 300), (750, 375), (341, 97), (224, 1000)])
def test_the_centre_is_torchvisions(width, height):
    import_torchvision()
    from torchvision import transforms

    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    picture = image(width, height)
    assert torch.equal(pixels(center_crop(picture, 224)), theirs(picture))


def test_other_sizes_keep_the_margin():
    assert center_crop(image(90, 70), 32).size == (32, 32)
    flat = Image.new("RGB", (80, 40), (10, 20, 30))
    assert pixels(center_crop(flat, 32)).unique(dim=0).flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_boxes_have_the_promised_area_and_ratio_and_lie_anywhere_inside():
    draw = torch.Generator().manual_seed(1)
    boxes = torch.tensor([random_box(500, 400, draw) for _ in range(4000)], dtype=torch.float64)
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 500
    assert bottom.max() <= 400
    area, ratio = width * height / 200_000, width / height
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.97
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    logs = ratio[area < 0.4].log()
    assert abs(logs.mean()) < 0.02
    small = area < 0.2
    assert abs(left[small].mean() / (500 - width[small]).mean() - 0.5) < 0.03
    assert abs(top[small].mean() / (400 - height[small]).mean() - 0.5) < 0.03


def test_boxes_of_another_area_and_ratio():
    draw = torch.Generator().manual_seed(1)
    boxes = [random_box(500, 500, draw, (0.1, 0.3), (0.8, 1.25)) for _ in range(500)]
    area = [(right - left) * (bottom - top) / 250_000 for left, top, right, bottom in boxes]
    ratio = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert (min(area), max(area), min(ratio), max(ratio)) == pytest.approx((0.1, 0.3, 0.8, 1.25), rel=0.02)
    assert random_box(20, 20, draw, (1.0, 1.0), (100.0, 100.0)) == (0, 9, 20, 10)


def test_a_box_may_lie_at_each_place_where_it_fits():
    draw = torch.Generator().manual_seed(4)
    boxes = {random_box(6, 5, draw, (0.3, 0.3), (1.0, 1.0)) for _ in range(500)}
    assert boxes == {(left, top, left + 3, top + 3) for left in range(4) for top in range(3)}


def test_boxes_are_spread_as_torchvisions():
    """Means of area and ratio of many draws, for an image in which many draws do not fit."""
    import_torchvision()
    from torchvision.transforms import RandomResizedCrop

    draw = torch.Generator().manual_seed(2)
    ours = torch.tensor([random_box(400, 150, draw) for _ in range(4000)], dtype=torch.float64)
    ours = torch.stack([ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]], 1)
    picture = torch.empty(3, 150, 400)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor([(width, height) for _, _, height, width in theirs], dtype=torch.float64)
    assert torch.allclose(ours.mean(0), theirs.mean(0), rtol=0.03)
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.06)


@pytest.mark.parametrize(
    ("size", "box"), [((900, 30), (430, 0, 470, 30)), ((30, 900), (0, 430, 30, 470)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_nothing_fits_the_centre_is_taken(size, box):
    assert random_box(*size, torch.Generator().manual_seed(0)) == box


def test_a_random_cut_is_the_resized_box_and_half_are_flipped():
    picture = image(60, 50)
    flips = 0
    for seed in range(60):
        cut = random_resized_crop(picture, 24, torch.Generator().manual_seed(seed), flip=True)
        plain = random_resized_crop(picture, 24, torch.Generator().manual_seed(seed), flip=False)
        box = random_box(60, 50, torch.Generator().manual_seed(seed))
        expected = picture.crop(box).resize((24, 24), Image.Resampling.BILINEAR)
        assert torch.equal(pixels(plain), pixels(expected))
        turned = not torch.equal(pixels(cut), pixels(plain))
        assert torch.equal(pixels(cut), pixels(plain).flip(-1) if turned else pixels(plain))
        flips += turned
    assert 18 < flips < 42
