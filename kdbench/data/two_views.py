"""Batches for SimCLR: two independently changed views of each image (Chen et al., ICML 2020), made on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.data.images import ImageSet
from kdbench.data.seeds import generator
from kdbench.data.view import Normalisation
from kdbench.suite.specs import DatasetSpec, Pretraining


class TwoViews:
    """The batches of a pre-training: images [2B, 3, H, W], all first views, then all second views in the same order.

    Each view is a random crop of at least ``smallest_crop`` of the area at a ratio between 3:4 and 4:3, resized to the
    recipe's size or the image's own, flipped if the recipe flips; in four of five its colours are changed, and one in five
    is grey. As on CIFAR in the paper there is no blur. Departures: colours change in a fixed order, and hue by a rotation
    in YIQ space.
    """

    def __init__(
        self, train: ImageSet, how: Pretraining, spec: DatasetSpec, seed: tuple[object, ...], device: torch.device
    ) -> None:
        self.how = how
        self.seed = seed
        self.device = device
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.normalise = Normalisation(how.recipe, spec, device)

    def __len__(self) -> int:
        """Images per epoch, each seen twice."""
        return self.labels.shape[0]

    def epoch(self, epoch: int, *, taught: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1. No teacher looks on."""
        draw = generator("two views", *self.seed, epoch)
        order = torch.randperm(len(self), generator=draw).to(self.device)
        batch = self.how.recipe.batch
        for start in range(0, len(self), batch):
            indices = order[start : start + batch].repeat(2)
            crops = self._crop(self.images[indices].float() / 255, draw)
            views = self._recolour(crops, draw)
            yield Batch(self.normalise(views.mul_(255)), self.labels[indices], indices)

    def _crop(self, images: Tensor, draw: torch.Generator) -> Tensor:
        count = len(images)
        uniform = torch.rand(5, count, generator=draw).to(self.device)
        area = self.how.smallest_crop + (1 - self.how.smallest_crop) * uniform[0]
        ratio = torch.exp(math.log(4 / 3) * (2 * uniform[1] - 1))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        left, top = (1 - width) * (2 * uniform[2] - 1), (1 - height) * (2 * uniform[3] - 1)
        if self.how.recipe.flip:
            width = torch.where(uniform[4] < 0.5, -width, width)
        zero = torch.zeros_like(width)
        theta = torch.stack([width, zero, left, zero, height, top], dim=1).view(count, 2, 3)
        side = self.how.recipe.size or images.shape[-1]
        grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _recolour(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Brightness, contrast, saturation and hue of images [N, 3, H, W] of values 0–1."""
        uniform = torch.rand(6, len(images), 1, 1, 1, generator=draw).to(self.device)
        changed = uniform[4] < 0.8
        strength = 0.8 * self.how.colour
        brightness, contrast, saturation = (
            torch.where(changed, 1 + strength * (2 * uniform[n] - 1), 1.0) for n in range(3)
        )
        turn = torch.where(changed, 0.2 * self.how.colour * (2 * uniform[3] - 1), 0.0)
        images = (images * brightness).clamp(0, 1)
        mean = _grey(images).mean((2, 3), keepdim=True)
        images = (mean + (images - mean) * contrast).clamp(0, 1)
        grey = _grey(images)
        images = (grey + (images - grey) * saturation).clamp(0, 1)
        images = _turn_hue(images, 2 * math.pi * turn.flatten())
        return torch.where(uniform[5] < 0.2, _grey(images), images)


def _grey(images: Tensor) -> Tensor:
    """The luma [N, 1, H, W] of ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate the two colour axes of YIQ space by an angle [N] in radians."""
    forward = images.new_tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    matrix = torch.linalg.inv(forward) @ rotation @ forward
    return torch.einsum("nij,njhw->nihw", matrix, images).clamp(0, 1)
