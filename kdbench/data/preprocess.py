"""Preprocessing: crop, bicubic resize, flip, normalisation; uint8 pixels on the device."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdbench.catalogue.datasets import dataset
from kdbench.suite.specs import DatasetSpec, Preprocessing


class Normalisation:
    """uint8 pixels to float: (x / 255 - mean) / std per channel, as one multiply-add, in channels-last memory."""

    def __init__(self, view: Preprocessing, spec: DatasetSpec, device: torch.device) -> None:
        facts = dataset(spec.name)
        mean = torch.tensor(view.mean or facts.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(view.std or facts.std, device=device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * std)
        self.shift = -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.mul_(self.scale).add_(self.shift)


def resize(images: Tensor, size: int | None) -> Tensor:
    """Images [N, 3, H, W] of values 0–255 at ``size`` × ``size`` pixels (None: as they are).

    Bicubic with antialiasing, first across, then down, each time rounded and clipped to whole pixel values: what Pillow, and
    so torchvision, gives to within one of the 256 levels.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    wide = _interpolated(images.to(torch.float32), (images.shape[2], size))
    return _interpolated(wide, (size, size))


def _interpolated(images: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(images, shape, mode="bicubic", antialias=True).round_().clamp_(0, 255)


class Augmenter:
    """Augmented views of a set of images [N, 3, H, W] uint8. A crop is an index into all of an image's windows."""

    def __init__(self, images: Tensor, view: Preprocessing, spec: DatasetSpec, device: torch.device) -> None:
        self.view = view
        self.device = device
        self.normalise = Normalisation(view, spec, device)
        side, pad = images.shape[-1], view.crop_padding
        padded = F.pad(images.to(device), (pad, pad, pad, pad))
        self.windows = padded.unfold(2, side, 1).unfold(3, side, 1)

    def draw(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Crop offsets [2, count] and flips [count] for as many images."""
        offsets = torch.randint(0, 2 * self.view.crop_padding + 1, (2, count), generator=draw)
        flips = torch.rand(count, generator=draw) < (0.5 if self.view.flip else 0.0)
        return offsets.to(self.device), flips.to(self.device)

    def __call__(self, indices: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """The normalised views [B, 3, H, W] of the images at ``indices`` [B]."""
        return self.normalise(self.pixels(indices, offsets, flips))

    def pixels(self, indices: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """The views before normalisation: values from 0 to 255."""
        images = resize(self.windows[indices, :, offsets[0], offsets[1]], self.view.size)
        if self.view.flip:
            images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
        return images


AREA, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of the random part: its share of the image, width over height, and how many draws before the centre is taken."""
MARGIN = 8 / 7
"""Tests: the image's shorter side before the centre is cut, in sides of the cut. 256 to 224."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Ends = tuple[float, float]


def random_resized_crop(
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
    crop = part.resize((size, size), Image.Resampling.BILINEAR)
    turned = torch.rand((), generator=draw).item() < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and turned else crop


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


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre of the image, after a bilinear resize of its shorter side to 8/7 of ``size``."""
    width, height = (int(int(size * MARGIN) * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> Tensor:
    """[3, H, W] uint8."""
    flattened = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flattened.view(image.height, image.width, 3).permute(2, 0, 1)


_FRAGMENTS: list[Any] = []
"""Operator declarations live as long as the object that made them."""


def import_torchvision() -> ModuleType:
    """Import torchvision.

    A torchvision built for CUDA cannot load its compiled operators with a CPU build of torch, and its import then fails
    at the registration of meta kernels for operators that do not exist. Declaring the two that it registers at import
    lets everything written in Python work: data sets, transforms, network definitions. kdbench needs no compiled one.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        import torchvision
    return torchvision  # type: ignore[no-any-return]


def _declare_operators() -> None:
    import sys

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _FRAGMENTS.append(library)
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
