"""Batches for SimCLR: two independently changed views of each image (Chen et al., ICML 2020), made on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.data.images import ImageSet
from kdbench.data.pixels import cut, grey, log_uniform, recoloured
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

    def epoch(
        self, epoch: int, *, taught: bool = False, transforms: Sequence[str] = (), first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1. No teacher looks on, and there are no further copies."""
        draw = generator("two views", *self.seed, epoch)
        order = torch.randperm(len(self), generator=draw).to(self.device)
        batch = self.how.recipe.batch
        for number, part in enumerate(torch.split(order, batch)):
            indices = part.repeat(2)
            where = torch.rand(5, len(indices), generator=draw)
            colours = torch.rand(6, len(indices), 1, 1, 1, generator=draw)
            if number < first:
                continue
            crops = self._crop(self.images[indices].float() / 255, where.to(self.device))
            views = self._recolour(crops, colours.to(self.device))
            yield Batch(self.normalise(views.mul_(255)), self.labels[indices], indices)

    def _crop(self, images: Tensor, uniform: Tensor) -> Tensor:
        area = self.how.smallest_crop + (1 - self.how.smallest_crop) * uniform[0]
        flip = uniform[4] < 0.5 if self.how.recipe.flip else None
        ratio = log_uniform(uniform[1], 4 / 3)
        return cut(images, area, ratio, uniform[2], uniform[3], flip, self.how.recipe.size)

    def _recolour(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue of images [N, 3, H, W] of values 0–1."""
        changed = uniform[4] < 0.8
        strength = 0.8 * self.how.colour
        brightness, contrast, saturation = (
            torch.where(changed, 1 + strength * (2 * uniform[n] - 1), 1.0) for n in range(3)
        )
        turn = torch.where(changed, 0.2 * self.how.colour * (2 * uniform[3] - 1), 0.0)
        images = recoloured(images, brightness, contrast, saturation, turn)
        return torch.where(uniform[5] < 0.2, grey(images), images)
