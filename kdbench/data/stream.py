"""The sequence of training batches: a pure function of data set, scenario, settings, trial and epoch.

The whole data set lives on the device as padded uint8 pixels. A crop is an index into all its windows, so that a batch
is one gather, one flip and one multiply-add: no loader, no workers, no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.catalogue.datasets import dataset
from kdbench.data.batch import Batch
from kdbench.data.images import ImageSet, load_images
from kdbench.data.scenario import apply_scenario
from kdbench.data.seeds import generator
from kdbench.suite.specs import DatasetSpec, Recipe, Scenario


class Normalisation:
    """uint8 pixels to float: (x / 255 - mean) / std per channel, as one multiply-add, in channels-last memory."""

    def __init__(self, recipe: Recipe, spec: DatasetSpec, device: torch.device) -> None:
        facts = dataset(spec.name)
        mean = torch.tensor(recipe.mean or facts.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(recipe.std or facts.std, device=device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * std)
        self.shift = -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.mul_(self.scale).add_(self.shift)


class Stream:
    """The training batches of a data set under a recipe. The short last batch is kept."""

    def __init__(
        self, train: ImageSet, recipe: Recipe, spec: DatasetSpec, seed: tuple[object, ...], device: torch.device
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.normalise = Normalisation(recipe, spec, device)
        self.labels = train.labels.to(device)
        self.clean = None if train.clean is None else train.clean.to(device)
        side, pad = train.images.shape[-1], recipe.crop_padding
        padded = F.pad(train.images.to(device), (pad, pad, pad, pad))
        self.windows = padded.unfold(2, side, 1).unfold(3, side, 1)

    def __len__(self) -> int:
        """Images per epoch."""
        return self.labels.shape[0]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1."""
        draw = generator("epoch", *self.seed, epoch)
        count = len(self)
        order = torch.randperm(count, generator=draw)
        offsets = torch.randint(0, 2 * self.recipe.crop_padding + 1, (2, count), generator=draw)
        flips = torch.rand(count, generator=draw) < (0.5 if self.recipe.flip else 0.0)
        order, offsets, flips = order.to(self.device), offsets.to(self.device), flips.to(self.device)
        for start in range(0, count, self.recipe.batch):
            part = slice(start, start + self.recipe.batch)
            yield self._batch(order[part], offsets[:, part], flips[part])

    def _batch(self, indices: Tensor, offsets: Tensor, flips: Tensor) -> Batch:
        images = self.windows[indices, :, offsets[0], offsets[1]]
        if self.recipe.flip:
            images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
        clean = None if self.clean is None else self.clean[indices]
        return Batch(self.normalise(images), self.labels[indices], indices, clean)


class TestSet:
    """The test images as normalised batches, in order."""

    __test__ = False

    def __init__(
        self, test: ImageSet, recipe: Recipe, spec: DatasetSpec, device: torch.device, batch: int = 256
    ) -> None:
        self.images, self.labels = test.images.to(device), test.labels.to(device)
        self.normalise = Normalisation(recipe, spec, device)
        self.batch = batch

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of images [B, 3, H, W] and labels [B]."""
        for start in range(0, len(self), self.batch):
            part = slice(start, start + self.batch)
            yield self.normalise(self.images[part]), self.labels[part]


class DataSource:
    """Data sets by spec, loaded once per process."""

    def __init__(self, root: Path, device: torch.device, *, download: bool = False) -> None:
        self.root, self.device, self.download = root, device, download
        self._loaded: dict[str, tuple[ImageSet, ImageSet]] = {}

    def sets(self, spec: DatasetSpec) -> tuple[ImageSet, ImageSet]:
        """Training and test set as they are, before any scenario."""
        if spec.id not in self._loaded:
            self._loaded = {spec.id: load_images(spec, self.root, download=self.download)}
        return self._loaded[spec.id]

    def stream(self, spec: DatasetSpec, scenario: Scenario, recipe: Recipe, trial: int) -> Stream:
        """The batches that a student of this trial sees."""
        train = apply_scenario(self.sets(spec)[0], scenario, spec, trial)
        return Stream(train, recipe, spec, (spec.canonical(), scenario.canonical(), trial), self.device)

    def test(self, spec: DatasetSpec, recipe: Recipe) -> TestSet:
        """The test set under the recipe's normalisation."""
        return TestSet(self.sets(spec)[1], recipe, spec, self.device)
