"""Random crop and flip of training images, in the student's preprocessing or the teacher's own."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.preprocess import Normalisation, resize
from kdbench.suite.specs import DatasetSpec, Preprocessing


class Augmenter:
    """Randomly cropped and flipped versions of a set of square images [N, 3, S, S] uint8.

    ``windows`` [N, 3, 2P + 1, 2P + 1, S, S] are all crops of the images padded by P pixels, so that a crop is an index.
    """

    def __init__(self, images: Tensor, view: Preprocessing, spec: DatasetSpec, device: torch.device) -> None:
        self.view = view
        self.device = device
        self.normalise = Normalisation(view, spec, device)
        side, pad = images.shape[-1], view.crop_padding
        padded = F.pad(images.to(device), (pad, pad, pad, pad))
        self.windows = padded.unfold(2, side, 1).unfold(3, side, 1)

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Offsets (row, column) of crops [2, count] int64, and flips [count] bool, for as many images, on the CPU."""
        offsets = torch.randint(0, 2 * self.view.crop_padding + 1, (2, count), generator=rng)
        flips = torch.rand(count, generator=rng) < (0.5 if self.view.flip else 0.0)
        return offsets, flips

    def number(self, offsets: Tensor, flips: Tensor) -> Tensor:
        """Which of all crops and flips was drawn: [count] int64, each less than ``view.crops``."""
        places = 2 * self.view.crop_padding + 1
        return (offsets[0] * places + offsets[1]) * (2 if self.view.flip else 1) + flips

    def numbered(self, number: int, indices: Tensor) -> Tensor:
        """The normalised views [B, 3, H, W] of the images at ``indices`` [B] under one crop and flip."""
        place, flip = divmod(number, 2 if self.view.flip else 1)
        offsets = torch.tensor(divmod(place, 2 * self.view.crop_padding + 1)).view(2, 1).expand(2, len(indices))
        flips = torch.full((len(indices),), bool(flip))
        return self(indices, offsets.to(self.device), flips.to(self.device))

    def __call__(self, indices: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """The normalised views [B, 3, H, W] of the images at ``indices`` [B]."""
        return self.normalise(self.pixels(indices, offsets, flips))

    def pixels(self, indices: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """The cropped and flipped images [B, 3, S, S] before normalisation: values from 0 to 255."""
        images = resize(self.windows[indices, :, offsets[0], offsets[1]], self.view.size)
        if self.view.flip:
            images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
        return images


AREA, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of the random part: its share of the image, width over height, and how many draws before the centre is taken."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Ends = tuple[float, float]


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: torch.Generator,
    *,
    flip: bool,
    areas: Ends = AREA,
    ratios: Ends = RATIO,
) -> Image.Image:
    """A random part of the image, resized bilinearly to ``size`` × ``size``, and flipped in half of the cases if ``flip``.

    The crop of Szegedy et al. (CVPR 2015), by default with torchvision's constants.
    """
    part = image.crop(random_box(image.width, image.height, rng, areas, ratios))
    crop = part.resize((size, size), Image.Resampling.BILINEAR)
    turned = torch.rand((), generator=rng).item() < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and turned else crop


def random_box(width: int, height: int, rng: torch.Generator, areas: Ends = AREA, ratios: Ends = RATIO) -> Box:
    """The part's place; the largest centre of an allowed ratio where no draw fits into the image."""
    for area, ratio, right, down in torch.rand(ATTEMPTS, 4, generator=rng, dtype=torch.float64).tolist():
        target = width * height * (areas[0] + (areas[1] - areas[0]) * area)
        shape = math.exp(math.log(ratios[0]) + (math.log(ratios[1]) - math.log(ratios[0])) * ratio)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = max(1, min(width, round(height * ratios[1]))), max(1, min(height, round(width / ratios[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
