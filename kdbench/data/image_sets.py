"""Image sets of a data set: decoded in memory or as files on disk, with subsets and label noise applied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdbench import __version__
from kdbench.catalogue.datasets import Dataset
from kdbench.data.batch import generator
from kdbench.data.preprocess import resize
from kdbench.datafiles import own_images, own_pictures
from kdbench.datafiles.fetch import fetch
from kdbench.datafiles.folders import Listing, list_folders, read_picture
from kdbench.datafiles.own_files import ImageSource
from kdbench.datafiles.readers import Split, read_splits
from kdbench.errors import BadInput
from kdbench.suite.data_specs import ImagesSpec
from kdbench.suite.specs import DatasetSpec, Scenario


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk.

    names:        [N] file names below ``folder``, as bytes
    labels:       [N] int64
    size:         the default image size in pixels, for a preprocessing that states none
    decode:       reads a file as RGB; raises BadInput for one that is no image
    clean_labels: [N] int64, the labels before label noise; None without noise
    indices:      [N] int64, positions in the whole list, sorted by class and name; None for the whole list
    """

    folder: Path
    names: NDArray[np.bytes_]
    labels: Tensor
    classes: int
    size: int
    decode: Callable[[Path], Image.Image] = read_picture
    clean_labels: Tensor | None = None
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Tensor) -> ImageFiles:
        """The files at ``indices``, in that order."""
        return replace(self, names=self.names[indices.numpy()], **_labels_at(self, indices))

    def read(self, index: int) -> Image.Image:
        """One image in RGB. Raises BadInput for a file that is none."""
        return self.decode(self.folder / os.fsdecode(self.names[index]))


def image_files(listing: Listing, facts: Dataset, decode: Callable[[Path], Image.Image] = read_picture) -> ImageFiles:
    """The set of files that a listing names."""
    labels = torch.from_numpy(listing.labels)
    return ImageFiles(listing.folder, listing.names, labels, facts.classes, facts.size, decode)


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    images:       [N, 3, H, W] uint8
    labels:       [N] int64 in 0 … classes - 1
    clean_labels: [N] int64, the labels before label noise; None without noise
    indices:      [N] int64, positions in the data set's files; None for all of them, in order
    """

    images: Tensor
    labels: Tensor
    classes: int
    clean_labels: Tensor | None = None
    indices: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def select(self, indices: Tensor) -> ImageSet:
        """The images at ``indices``, in that order."""
        return replace(self, images=self.images[indices], **_labels_at(self, indices))


def _labels_at(whole: ImageSet | ImageFiles, indices: Tensor) -> dict[str, Any]:
    """The fields of a selection that sets in memory and on disk have in common."""
    clean = whole.clean_labels
    return {
        "labels": whole.labels[indices],
        "clean_labels": None if clean is None else clean[indices],
        "indices": indices if whole.indices is None else whole.indices[indices],
    }


AnySet = TypeVar("AnySet", ImageSet, ImageFiles)
Sets = tuple[ImageSet, ImageSet] | tuple[ImageFiles, ImageFiles]
"""Training and test set, both in memory or both as files."""


def load_images(
    spec: DatasetSpec, root: Path, *, download: bool = False, sources: Mapping[str, ImageSource] | None = None
) -> Sets:
    """Training and test set; with ``download``, missing or damaged files are fetched first.

    sources: where images of one's own are, by the hash of their content

    Raises BadInput for missing or wrong files, KdbenchError if a download fails.
    """
    facts = spec.facts
    if spec.images and not spec.stand_in:
        return _load_own(spec.images, (sources or {}).get(spec.images.sha256), spec)
    try:
        return _load(facts, spec, root)
    except BadInput:
        if not (download and fetch(facts, root)):
            raise
    return _load(facts, spec, root)


def _load_own(images: ImagesSpec, source: ImageSource | None, spec: DatasetSpec) -> Sets:
    if not images.streamed:
        return _in_memory(own_images.load(images.sha256, source), spec)
    listings = own_images.list_streamed(images.sha256, source)
    decode = partial(own_pictures.read_picture, source.kind if source else "folder")
    train, test = (image_files(each, spec.facts, decode) for each in listings)
    return _parts(train, test, spec)


def _load(facts: Dataset, spec: DatasetSpec, root: Path) -> Sets:
    if facts.streamed and not spec.stand_in:
        train_files, test_files = (image_files(each, facts) for each in list_folders(facts, root))
        return _parts(train_files, test_files, spec)
    if facts.files and not spec.stand_in:
        return _in_memory(read_splits(facts, root), spec)
    return _parts_in_size(*_digits(), spec)


def _in_memory(halves: tuple[Split, Split], spec: DatasetSpec) -> Sets:
    classes = spec.facts.classes
    train, test = (ImageSet(torch.from_numpy(s.images), torch.from_numpy(s.labels), classes) for s in halves)
    return _parts_in_size(train, test, spec)


def _parts_in_size(train: ImageSet, test: ImageSet, spec: DatasetSpec) -> Sets:
    train, test = _parts(train, test, spec)
    size = spec.image_size if spec.stand_in else spec.size
    return _in_size(train, size), _in_size(test, size)


def _parts(train: AnySet, test: AnySet, spec: DatasetSpec) -> tuple[AnySet, AnySet]:
    if spec.val_split is not None:
        train, test = _held_out(train, spec)
    return _part(train, spec, "train", spec.train_per_class), _part(test, spec, "test", spec.test_per_class)


def _in_size(images: ImageSet, size: int | None) -> ImageSet:
    if size is None:
        return images
    small = [resize(part, size).to(torch.uint8) for part in torch.split(images.images, 1000)]
    return replace(images, images=torch.cat(small))


def _held_out(train: AnySet, spec: DatasetSpec) -> tuple[AnySet, AnySet]:
    """The training set without a share of each class, and that share. The draw depends on the data set alone."""
    rng = generator("validation", spec.key)
    rest, held_out = [], []
    for label in range(train.classes):
        order = _draw_class(train.labels, label, None, rng)
        count, _ = spec.split(len(order), 0)
        if not 0 < count < len(order):
            raise BadInput(
                f"{spec.name}: val_split {spec.val_split} of the {len(order)} training images of class {label} leaves none "
                "to train on, or none to measure on. Choose another share."
            )
        rest.append(order[:count])
        held_out.append(order[count:])
    return train.select(torch.cat(rest).sort().values), train.select(torch.cat(held_out).sort().values)


def _part(whole: AnySet, spec: DatasetSpec, split: str, per_class: int | None) -> AnySet:
    if spec.classes is None and per_class is None:
        return whole
    classes = spec.classes or whole.classes
    rng = generator("subset", spec.key, split)
    kept = [_draw_class(whole.labels, label, per_class, rng) for label in range(classes)]
    return replace(whole.select(torch.cat(kept).sort().values), classes=classes)


def _draw_class(labels: Tensor, label: int, count: int | None, rng: torch.Generator) -> Tensor:
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=rng)
    return members[order[:count]]


def _digits_table() -> NDArray[np.float64]:
    """The table that sklearn.datasets.load_digits reads, without its import, which takes longer than all of ``_digits``.

    Each line holds 64 pixels from 0 to 16 and the label: [1797, 65].
    """
    found = find_spec("sklearn")
    folder = Path(str(found.origin)).parent if found else Path()
    table: NDArray[np.float64] = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table


@cache
def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's digits as 32x32 RGB; of each class 100 images to train, the rest to test."""
    table = _digits_table()
    grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = torch.from_numpy(np.stack(large)).unsqueeze(1).repeat(1, 3, 1, 1)
    whole = ImageSet(images, torch.from_numpy(table[:, -1]).long(), 10)
    rng = generator("digits", "split")
    train = torch.cat([_draw_class(whole.labels, label, 100, rng) for label in range(10)]).sort().values
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[train] = False
    return whole.select(train), whole.select(rest.nonzero().flatten())


@dataclass(frozen=True)
class Samples:
    """The images and labels that a student learns from.

    indices: [N] int64, positions in the official training set, ascending
    true:    [N] int64, the labels before label noise
    given:   [N] int64, the labels that the student sees
    """

    indices: Tensor
    true: Tensor
    given: Tensor

    @property
    def changed(self) -> int:
        """The number of labels that differ from the true ones."""
        return int((self.true != self.given).sum())

    @property
    def sha256(self) -> str:
        """The hash of the lines ``index,given_label``, each ended by a line feed."""
        lines = zip(self.indices.tolist(), self.given.tolist(), strict=True)
        return hashlib.sha256("".join(f"{place},{given}\n" for place, given in lines).encode()).hexdigest()

    def result_fields(self) -> dict[str, Any]:
        """The fields of a student's result that describe its images and labels."""
        return {"changed_labels": self.changed, "samples_sha256": self.sha256}

    def csv(self, spec: DatasetSpec, scenario: Scenario, trial: int) -> Iterator[str]:
        """The lines of a CSV file, with a header of comments (#)."""
        yield f"# kdbench {__version__}: the images and labels that a student learns from"
        yield f"# dataset: {json.dumps(spec.canonical())}"
        yield f"# scenario: {json.dumps(scenario.canonical())}"
        yield f"# trial: {trial}"
        yield f"# images: {len(self.indices)}, labels that are not the true ones: {self.changed}"
        yield f"# sha256 of the lines index,given_label: {self.sha256}"
        yield "index,true_label,given_label"
        for row in zip(self.indices.tolist(), self.true.tolist(), self.given.tolist(), strict=True):
            yield "{},{},{}".format(*row)


def samples_of(train: ImageSet | ImageFiles) -> Samples:
    """The list of a training set as a scenario leaves it."""
    indices = torch.arange(len(train)) if train.indices is None else train.indices
    return Samples(indices, train.labels if train.clean_labels is None else train.clean_labels, train.labels)


def apply_scenario(train: AnySet, scenario: Scenario, spec: DatasetSpec, trial: int) -> AnySet:
    """Keep ``fraction`` of each class, then give wrong labels to a share ``label_noise``, as ``noise`` says.

    Both draws depend on the data set and the trial alone. The images of a smaller fraction are among those of a larger, the
    labels that a smaller share changes among those that a larger does; `other` and `all` draw for the same images.
    """
    if scenario.fraction < 1.0:
        rng = generator("fraction", spec.canonical(), trial)
        train = train.select(_few_shot(train.labels, train.classes, scenario.fraction, rng))
    if scenario.label_noise > 0.0:
        rng = generator("label noise", spec.canonical(), trial)
        noisy = _NOISE[scenario.noise](train.labels, train.classes, scenario.label_noise, rng)
        train = replace(train, labels=noisy, clean_labels=train.labels)
    return train


def _few_shot(labels: Tensor, classes: int, fraction: float, rng: torch.Generator) -> Tensor:
    kept = []
    for members, order in _shuffled_classes(labels, classes, rng):
        count = max(1, round(fraction * len(members)))
        kept.append(members[order[:count]])
    return torch.cat(kept).sort().values


def _redrawn(labels: Tensor, classes: int, share: float, rng: torch.Generator, smallest_shift: int = 0) -> Tensor:
    """Labels moved on by a random number of classes, for a share of each class.

    Where that is no whole number of images, the classes that lack most of one give it (of equals, those that are drawn for
    it), so that the share of all is right.
    """
    noisy = labels.clone()
    drawn = []
    for members, order in _shuffled_classes(labels, classes, rng):
        drawn.append((members, order, torch.randint(smallest_shift, classes, (len(members),), generator=rng)))
    sizes = [share * len(members) + 1e-9 for members, _, _ in drawn]  # 0.3 * 10 is not quite 3
    left = round(share * len(labels)) - sum(map(int, sizes))
    lots = torch.randperm(len(drawn), generator=rng).tolist()
    by_rest = sorted(range(len(drawn)), key=lambda index: (-round(sizes[index] % 1, 6), lots[index]))
    more = set(by_rest[:left])
    for index, (members, order, shifts) in enumerate(drawn):
        count = int(sizes[index]) + (index in more)
        chosen = members[order[:count]]
        noisy[chosen] = (noisy[chosen] + shifts[:count]) % classes
    return noisy


def _renamed_classes(labels: Tensor, classes: int, share: float, rng: torch.Generator) -> Tensor:
    """All labels of a share of the classes moved on together; two classes may end as one."""
    shifts = torch.randint(1, classes, (classes,), generator=rng)
    renamed = torch.randperm(classes, generator=rng)[: round(share * classes)]
    names = torch.arange(classes)
    names[renamed] = (renamed + shifts[renamed]) % classes
    return names[labels]


_NOISE: dict[str, Callable[[Tensor, int, float, torch.Generator], Tensor]] = {
    "other": partial(_redrawn, smallest_shift=1),
    "all": _redrawn,
    "classes": _renamed_classes,
}


def _shuffled_classes(labels: Tensor, classes: int, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return [(each, torch.randperm(len(each), generator=rng)) for each in members if len(each)]
