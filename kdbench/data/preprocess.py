"""Preprocessing of uint8 pixels: resize, centre crop, normalisation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdbench.suite.specs import DatasetSpec, Preprocessing


class Normalisation:
    """uint8 pixels to float: (x / 255 - mean) / std per channel, as one multiply-add, in channels-last memory."""

    def __init__(self, view: Preprocessing, spec: DatasetSpec, device: torch.device) -> None:
        facts = spec.facts
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


MARGIN = 8 / 7
"""At test time the shorter side is resized to 8/7 of the crop's size: 256 pixels for 224."""


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
