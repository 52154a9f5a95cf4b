"""What a network sees of an image: crop, bicubic resize, flip, normalisation. The pixels live on the device as uint8."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.catalogue.datasets import dataset
from kdbench.suite.specs import DatasetSpec, View


class Normalisation:
    """uint8 pixels to float: (x / 255 - mean) / std per channel, as one multiply-add, in channels-last memory."""

    def __init__(self, view: View, spec: DatasetSpec, device: torch.device) -> None:
        facts = dataset(spec.name)
        mean = torch.tensor(view.mean or facts.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(view.std or facts.std, device=device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * std)
        self.shift = -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.mul_(self.scale).add_(self.shift)


def resized(images: Tensor, size: int | None) -> Tensor:
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


class Viewer:
    """Augmented views of a set of images [N, 3, H, W] uint8. A crop is an index into all of an image's windows."""

    def __init__(self, images: Tensor, view: View, spec: DatasetSpec, device: torch.device) -> None:
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
        """The same before normalisation: values from 0 to 255."""
        images = resized(self.windows[indices, :, offsets[0], offsets[1]], self.view.size)
        if self.view.flip:
            images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
        return images
