"""Batches of images that stay files: worker processes decode and crop them while the networks train.

Every image's crop depends on (seed, epoch, image) alone, and the batches come in the order in which they were asked for. So
an epoch is the same whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.data.augment import AREA, RATIO, random_resized_crop
from kdbench.data.batch import UNDIVIDED, VIEWS_PER_IMAGE, Batch, Portion, generator
from kdbench.data.image_sets import ImageFiles
from kdbench.data.preprocess import Normalisation, center_crop, pixels
from kdbench.data.views import ViewGenerator
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec, Preprocessing, Recipe


BatchRequest = tuple[int | None, bool, bool, list[int]]
"""A request to a worker: the epoch (None: center crops), whether to include the teacher's images, whether to include crops
for transformed views, the indices of the images."""


def loader_workers() -> int:
    """As many processes as there are cores for this one, up to eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


class CropDataset(Dataset[Any]):
    """The dataset that the workers run: a request gives one stack of pixels [B, 3, H, W] uint8 for each of ``views``.

    With transformed views, stacks of [VIEWS_PER_IMAGE · B, 3, H, W] follow, one for each view.
    """

    def __init__(self, files: ImageFiles, views: Sequence[Preprocessing], seed: tuple[object, ...]) -> None:
        self.files, self.views, self.seed = files, views, seed

    def __getitem__(self, request: BatchRequest) -> list[Tensor] | BadInput:
        epoch, with_teacher, with_views, indices = request
        views = self.views if with_teacher else self.views[:1]
        try:
            seen = [self._cut(index, epoch, views, with_views) for index in indices]
        except BadInput as error:  # travels as a value: what is raised in a worker arrives as a traceback
            return error
        # stacked with the channels last, as the images are decoded and as convolutions want them
        return [
            torch.stack([cut.permute(1, 2, 0) for cuts in group for cut in cuts]).permute(0, 3, 1, 2)
            for group in zip(*seen, strict=True)
        ]

    def _cut(
        self, index: int, epoch: int | None, views: Sequence[Preprocessing], with_views: bool
    ) -> list[list[Tensor]]:
        image = self.files.read(index)
        if epoch is None:
            return [[pixels(center_crop(image, view.size or self.files.size))] for view in views]
        place = (*self.seed, epoch, index)
        cuts = [[self._drawn(image, view, "cut", number, *place)] for number, view in enumerate(views)]
        for number, view in enumerate(views if with_views else []):
            cuts.append([self._drawn(image, view, "copy", number, *place, copy) for copy in range(VIEWS_PER_IMAGE)])
        return cuts

    def _drawn(self, image: Image.Image, view: Preprocessing, *seed: object) -> Tensor:
        size, rng = view.size or self.files.size, generator(*seed)
        areas, ratios = view.crop_area or AREA, view.crop_ratio or RATIO
        return pixels(random_resized_crop(image, size, rng, flip=view.flip, areas=areas, ratios=ratios))


class Loader:
    """Requests batches from the workers and yields them on the device, in order. The workers live as long as it does."""

    def __init__(self, crops: CropDataset, device: torch.device) -> None:
        self.device = device
        self.requests = _Requests()
        self.loader: DataLoader[Any] = DataLoader(
            crops,
            batch_size=None,
            sampler=self.requests,
            num_workers=loader_workers(),
            generator=torch.Generator(),  # or it would draw from the one that the networks draw from
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=_settle,
            multiprocessing_context=_context(),
            persistent_workers=True,
        )

    def __call__(self, requests: list[BatchRequest]) -> Iterator[list[Tensor]]:
        """The batches of the requests. Raises BadInput for a file that cannot be decoded."""
        self.requests.wanted = requests
        for answer in self.loader:
            if isinstance(answer, BadInput):
                raise answer
            yield [stack.to(self.device, non_blocking=True) for stack in answer]


class _Requests:
    """A sampler that gives the requests of this pass."""

    def __init__(self) -> None:
        self.wanted: list[BatchRequest] = []

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


class FileStream:
    """The training batches of image files under a recipe, with the teacher's own ``view`` of each image where it has one.

    A random part of the image, resized to the view's size or the data set's, replaces the padded crop. The short
    last batch is kept.
    """

    def __init__(
        self,
        train: ImageFiles,
        recipe: Recipe,
        spec: DatasetSpec,
        seed: tuple[object, ...],
        device: torch.device,
        view: Preprocessing | None = None,
    ) -> None:
        views: list[Preprocessing] = [recipe, *([view] if view else [])]
        self.batch, self.seed, self.device = recipe.batch, seed, device
        self.normalise = [Normalisation(each, spec, device) for each in views]
        self.labels = train.labels.to(device)
        self.clean_labels = None if train.clean_labels is None else train.clean_labels.to(device)
        self.load = Loader(CropDataset(train, [each.preprocessing for each in views], seed), device)

    def __len__(self) -> int:
        """Images per epoch."""
        return self.labels.shape[0]

    def epoch(
        self,
        epoch: int,
        *,
        with_teacher: bool = True,
        transforms: Sequence[str] = (),
        first: int = 0,
        portion: Portion = UNDIVIDED,
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1. Without a teacher, its own images are left out.

        Each view that ``transforms`` names has its own crop and its own flip.
        """
        order = torch.randperm(len(self), generator=generator("epoch", *self.seed, epoch))
        starts = range(first * self.batch, len(self), self.batch)
        parts = [portion.of(start, min(start + self.batch, len(self))) for start in starts]
        batches = self.load([(epoch, with_teacher, bool(transforms), order[part].tolist()) for part, _ in parts])
        generators = {name: ViewGenerator(name, len(self), (*self.seed, epoch), self.device) for name in transforms}
        normalise = self.normalise if with_teacher else self.normalise[:1]
        order = order.to(self.device)
        for (part, portions), stacks in zip(parts, batches, strict=True):
            images = [each(stack) for each, stack in zip(normalise, stacks, strict=False)]
            crops, indices = stacks[len(images) :], order[part]
            yield Batch(
                images=images[0],
                labels=self.labels[indices],
                indices=indices,
                clean_labels=None if self.clean_labels is None else self.clean_labels[indices],
                teacher_images=images[1] if len(images) > 1 else None,
                views={name: generate(crops, normalise, part.start) for name, generate in generators.items()},
                portions=portions,
            )


class FileTestSet:
    """Center crops of the test images as normalised batches, in order."""

    def __init__(
        self, test: ImageFiles, view: Preprocessing, spec: DatasetSpec, device: torch.device, batch: int = 256
    ) -> None:
        self.labels = test.labels.to(device)
        self.normalise = Normalisation(view, spec, device)
        self.requests: list[BatchRequest] = [
            (None, False, False, part.tolist()) for part in torch.split(torch.arange(len(test)), batch)
        ]
        self.load = Loader(CropDataset(test, [view.preprocessing], ()), device)
        self.batch = batch

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of images [B, 3, H, W] and labels [B]; of every ``step``-th batch, from number ``first`` on."""
        labels = torch.split(self.labels, self.batch)[first::step]
        for (stack,), right in zip(self.load(self.requests[first::step]), labels, strict=True):
            yield self.normalise(stack), right


def _as_it_is(answer: list[Tensor] | BadInput) -> list[Tensor] | BadInput:
    return answer


def _context() -> Any:
    """Start workers from a server process that has imported their modules once and runs no threads.

    A plain fork would copy the locks of this process's threads, held or not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _settle(worker: int) -> None:
    """Leave signals to the parent, and end when it is gone, however it ended and whenever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
