"""The sequence of training batches: a pure function of data set, scenario, settings, trial and epoch.

Images in memory: the whole data set lives on the device as padded uint8 pixels, so that a batch is one gather, one flip and
one multiply-add, without a loader. Images that stay files: ``file_stream``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.augment import Augmenter
from kdbench.data.batch import UNDIVIDED, VIEWS_PER_IMAGE, Batch, Portion, generator
from kdbench.data.file_stream import FileStream, FileTestSet
from kdbench.data.image_sets import ImageFiles, ImageSet, Samples, Sets, apply_scenario, load_images, samples_of
from kdbench.data.output_cache import OutputCache
from kdbench.data.preprocess import Normalisation, resize
from kdbench.data.views import TwoViews, ViewGenerator, view_rows
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, KdbenchError
from kdbench.suite.specs import DatasetSpec, Preprocessing, Pretraining, Recipe, Scenario


class Stream:
    """The training batches of a data set under a recipe, with the teacher's own ``view`` of each image where it has one.

    The short last batch is kept. With a ``cache`` the teacher's outputs come in place of its own view.
    """

    def __init__(
        self,
        train: ImageSet,
        recipe: Recipe,
        spec: DatasetSpec,
        seed: tuple[object, ...],
        device: torch.device,
        view: Preprocessing | None = None,
    ) -> None:
        self.batch = recipe.batch
        self.seed = seed
        self.device = device
        self.student = Augmenter(train.images, recipe, spec, device)
        self.teacher = Augmenter(train.images, view, spec, device) if view else None
        self.labels = train.labels.to(device)
        self.clean_labels = None if train.clean_labels is None else train.clean_labels.to(device)
        self.cache: OutputCache | None = None

    def __len__(self) -> int:
        """Images per epoch."""
        return self.labels.shape[0]

    @property
    def shown(self) -> Augmenter:
        """What makes the images that the teacher sees."""
        return self.teacher or self.student

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

        The transformed views that ``transforms`` names use random numbers of their own, so the images are the same with and
        without them. Each view has its own crop and the image's flip. SSKD's code flips, turns and then crops; offsets are
        uniform, so a crop before the turn has the same distribution.
        """
        rng = generator("epoch", *self.seed, epoch)
        count = len(self)
        places = torch.randperm(count, generator=rng)
        augmenters, drawn = [self.student], [self.student.draw(count, rng)]
        if self.teacher and with_teacher:
            augmenters.append(self.teacher)
            drawn.append(self.teacher.draw(count, generator("teacher's view", *self.seed, epoch)))
        cache = self.cache if with_teacher else None
        if cache:
            numbers = self.shown.number(*drawn[-1])
            augmenters = [self.student]
        order = places.to(self.device)
        crops_and_flips = [
            (offsets.to(self.device), flips.to(self.device)) for offsets, flips in drawn[: len(augmenters)]
        ]
        generators = {name: ViewGenerator(name, count, (*self.seed, epoch), self.device) for name in transforms}
        crops = [
            augmenter.draw(VIEWS_PER_IMAGE * count, generator("copies", role, *self.seed, epoch))[0].to(self.device)
            for role, augmenter in enumerate(augmenters if generators else [])
        ]
        for start in range(first * self.batch, count, self.batch):
            part, portions = portion.of(start, min(start + self.batch, count))
            indices = order[part]
            seen = [
                augmenter(indices, offsets[:, part], flips[part])
                for augmenter, (offsets, flips) in zip(augmenters, crops_and_flips, strict=True)
            ]
            rows = view_rows(part.start, len(indices))
            pixels = [
                augmenter.pixels(
                    indices.repeat_interleave(VIEWS_PER_IMAGE),
                    offsets[:, rows],
                    flips[part].repeat_interleave(VIEWS_PER_IMAGE),
                )
                for augmenter, offsets, (_, flips) in zip(augmenters, crops, crops_and_flips, strict=False)
            ]
            normalise = [augmenter.normalise for augmenter in augmenters]
            yield Batch(
                images=seen[0],
                labels=self.labels[indices],
                indices=indices,
                clean_labels=None if self.clean_labels is None else self.clean_labels[indices],
                teacher_images=seen[1] if len(seen) > 1 else None,
                views={name: generate(pixels, normalise, part.start) for name, generate in generators.items()},
                taught=cache(numbers[part], places[part]) if cache else None,
                portions=portions,
            )


def _test_batch(device: torch.device, side: int) -> int:
    """How many images of ``side`` × ``side`` pixels are tested at once: more on a GPU, which small ones keep busier then."""
    return 256 if device.type == "cpu" else max(256, 1024 * 32**2 // side**2)


class TestSet:
    """The test images as normalised batches, in order."""

    __test__ = False

    def __init__(
        self, test: ImageSet, view: Preprocessing, spec: DatasetSpec, device: torch.device, batch: int | None = None
    ) -> None:
        self.images, self.labels = test.images.to(device), test.labels.to(device)
        self.size = view.size
        self.normalise = Normalisation(view, spec, device)
        self.batch = batch or _test_batch(device, view.size or test.images.shape[-1])

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of images [B, 3, H, W] and labels [B]; of every ``step``-th batch, from number ``first`` on."""
        for start in range(first * self.batch, len(self), step * self.batch):
            part = slice(start, start + self.batch)
            yield self.normalise(resize(self.images[part], self.size)), self.labels[part]


class DataSource:
    """Data sets by spec, loaded once per process."""

    def __init__(
        self,
        root: Path,
        device: torch.device,
        *,
        download: bool = False,
        sources: Mapping[str, ImageSource] | None = None,
    ) -> None:
        self.root, self.device, self.download, self.sources = root, device, download, sources
        self._loaded: dict[str, Sets] = {}

    def sets(self, spec: DatasetSpec) -> Sets:
        """Training and test set before any scenario."""
        if spec.id not in self._loaded:
            self._loaded = {spec.id: load_images(spec, self.root, download=self.download, sources=self.sources)}
        return self._loaded[spec.id]

    def stream(
        self, spec: DatasetSpec, scenario: Scenario, recipe: Recipe, trial: int, view: Preprocessing | None = None
    ) -> Stream | FileStream:
        """The training batches of a trial; ``view`` is the teacher's own preprocessing, if any."""
        train = self._student_set(spec, scenario, trial)
        seed = (spec.canonical(), scenario.canonical(), trial)
        if isinstance(train, ImageFiles):
            return FileStream(train, recipe, spec, seed, self.device, view)
        return Stream(train, recipe, spec, seed, self.device, view)

    def samples(self, spec: DatasetSpec, scenario: Scenario, trial: int) -> Samples:
        """The images and labels that a student of this trial learns from."""
        return samples_of(self._student_set(spec, scenario, trial))

    def two_views(self, spec: DatasetSpec, how: Pretraining, trial: int) -> TwoViews:
        """The batches of a pre-training without labels. Raises BadInput for images that stay files."""
        train = self.sets(spec)[0]
        if isinstance(train, ImageFiles):
            raise BadInput(
                f"a pre-training with SimCLR needs its images in memory, and those of {spec.name} stay files"
            )
        return TwoViews(train, how, spec, (spec.canonical(), trial), self.device)

    def test(self, spec: DatasetSpec, view: Preprocessing) -> TestSet | FileTestSet:
        """The test set as a network sees it under a view."""
        return self._as_tested(self.sets(spec)[1], view, spec)

    def train(self, spec: DatasetSpec, view: Preprocessing) -> TestSet | FileTestSet:
        """The training set as a network sees it under a view, without augmentation."""
        return self._as_tested(self.sets(spec)[0], view, spec)

    def _student_set(self, spec: DatasetSpec, scenario: Scenario, trial: int) -> ImageSet | ImageFiles:
        whole: Any = self.sets(spec)[0]
        student_set: ImageSet | ImageFiles = apply_scenario(whole, scenario, spec, trial)
        return student_set

    def _as_tested(
        self, images: ImageSet | ImageFiles, view: Preprocessing, spec: DatasetSpec
    ) -> TestSet | FileTestSet:
        if isinstance(images, ImageFiles):
            return FileTestSet(images, view, spec, self.device)
        return TestSet(images, view, spec, self.device)


class FeatureStream:
    """Batches of features in a new order each epoch, a pure function of seed and epoch.

    features: [N, D] float32, labels: [N] int64
    """

    def __init__(self, features: Tensor, labels: Tensor, batch: int, seed: tuple[object, ...]) -> None:
        self.features, self.labels, self.batch, self.seed = features, labels, batch, seed

    def __len__(self) -> int:
        """Images per epoch."""
        return len(self.labels)

    def epoch(
        self,
        epoch: int,
        *,
        with_teacher: bool = True,
        transforms: Sequence[str] = (),
        first: int = 0,
        portion: Portion = UNDIVIDED,
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1, whatever the ``portion``: a device sees them whole."""
        order = torch.randperm(len(self), generator=generator("features", *self.seed, epoch))
        for indices in torch.split(order.to(self.labels.device), self.batch)[first:]:
            yield Batch(images=self.features[indices], labels=self.labels[indices], indices=indices)


@torch.no_grad()
def embed(network: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] float32 and labels [N] of all images. The network is left in eval mode."""
    network.eval()
    found = [(network(batch).embedding.float(), labels) for batch, labels in images]
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])


def print_samples() -> None:
    """Print, as CSV, the images and labels that a student would be trained on: a short-lived process of its own.

    Standard input is JSON: ``dataset``, ``scenario`` and ``trial`` as in a run's spec, and the folder ``data``. An error
    goes to standard error, and its exit code is the process's.
    """
    request = json.load(sys.stdin)
    spec, scenario = DatasetSpec(**request["dataset"]), Scenario(**request["scenario"])
    source = DataSource(Path(request["data"]), torch.device("cpu"))
    try:
        samples = source.samples(spec, scenario, request["trial"])
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.stdout.writelines(f"{line}\n" for line in samples.csv(spec, scenario, request["trial"]))
