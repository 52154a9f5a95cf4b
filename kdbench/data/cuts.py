"""What a network sees of an image of any size: a random part of it in training, its centre in tests."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor


AREA, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of the random part: its share of the image, width over height, and how many draws before the centre is taken."""
MARGIN = 8 / 7
"""Tests: the image's shorter side before the centre is cut, in sides of the cut. 256 to 224."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Ends = tuple[float, float]


def random_cut(
    image: Image.Image,
    size: int,
    draw: torch.Generator,
    *,
    flip: bool,
    areas: Ends = AREA,
    ratios: Ends = RATIO,
) -> Image.Image:
    """A random part of the image, resized bilinearly to ``size`` × ``size``, and flipped in half of the cases if ``flip``.

    The crop of Szegedy et al. (CVPR 2015), by default with torchvision's constants.
    """
    part = image.crop(random_box(image.width, image.height, draw, areas, ratios))
    cut = part.resize((size, size), Image.Resampling.BILINEAR)
    turned = torch.rand((), generator=draw).item() < 0.5
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and turned else cut


def random_box(width: int, height: int, draw: torch.Generator, areas: Ends = AREA, ratios: Ends = RATIO) -> Box:
    """The part's place; the largest centre of an allowed ratio where no draw fits into the image."""
    for area, ratio, right, down in torch.rand(ATTEMPTS, 4, generator=draw, dtype=torch.float64).tolist():
        target = width * height * (areas[0] + (areas[1] - areas[0]) * area)
        shape = math.exp(math.log(ratios[0]) + (math.log(ratios[1]) - math.log(ratios[0])) * ratio)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = max(1, min(width, round(height * ratios[1]))), max(1, min(height, round(width / ratios[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_cut(image: Image.Image, size: int) -> Image.Image:
    """The centre of the image, after a bilinear resize of its shorter side to 8/7 of ``size``."""
    width, height = (int(int(size * MARGIN) * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> Tensor:
    """[3, H, W] uint8."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
