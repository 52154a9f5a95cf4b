"""Sets of images in memory, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.catalogue.datasets import Dataset, dataset
from kdbench.data.image_files import ImageFiles, image_files
from kdbench.data.seeds import generator
from kdbench.data.view import resized
from kdbench.datafiles.fetch import fetch
from kdbench.datafiles.folders import list_folders
from kdbench.datafiles.read import read_splits
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec


@dataclass(frozen=True)
class ImageSet:
    """images: [N, 3, H, W] uint8, labels: [N] int64 in 0 … classes - 1; clean: the labels before label noise, if any.

    places: [N] int64, where the images stand in the files that they come from; None where they are all of these, in order.
    """

    images: Tensor
    labels: Tensor
    classes: int
    clean: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def select(self, indices: Tensor) -> ImageSet:
        """The images at ``indices``, in that order."""
        clean = None if self.clean is None else self.clean[indices]
        places = indices if self.places is None else self.places[indices]
        return ImageSet(self.images[indices], self.labels[indices], self.classes, clean, places)


AnySet = TypeVar("AnySet", ImageSet, ImageFiles)
Sets = tuple[ImageSet, ImageSet] | tuple[ImageFiles, ImageFiles]
"""Training and test set, both in memory or both as files."""


def load_images(spec: DatasetSpec, root: Path, *, download: bool = False) -> Sets:
    """Training and test set; with ``download``, what is missing or damaged is fetched first.

    Raises BadInput where the files are missing or not what they should be, KdbenchError where a download fails.
    """
    facts = dataset(spec.name)
    try:
        return _load(facts, spec, root)
    except BadInput:
        if not (download and fetch(facts, root)):
            raise
    return _load(facts, spec, root)


def _load(facts: Dataset, spec: DatasetSpec, root: Path) -> Sets:
    if facts.streamed and not spec.stand_in:
        train_files, test_files = (image_files(each, facts.classes, facts.size) for each in list_folders(facts, root))
        return _parts(train_files, test_files, spec)
    if facts.files and not spec.stand_in:
        train, test = (
            ImageSet(torch.from_numpy(split.images), torch.from_numpy(split.labels), facts.classes)
            for split in read_splits(facts, root)
        )
    else:
        train, test = _digits()
    train, test = _parts(train, test, spec)
    size = spec.side if spec.stand_in else spec.size
    return _in_size(train, size), _in_size(test, size)


def _parts(train: AnySet, test: AnySet, spec: DatasetSpec) -> tuple[AnySet, AnySet]:
    if spec.val_split is not None:
        train, test = _held_out(train, spec)
    return _part(train, spec, "train", spec.train_per_class), _part(test, spec, "test", spec.test_per_class)


def _in_size(images: ImageSet, size: int | None) -> ImageSet:
    if size is None:
        return images
    small = [resized(part, size).to(torch.uint8) for part in torch.split(images.images, 1000)]
    return replace(images, images=torch.cat(small))


def _held_out(train: AnySet, spec: DatasetSpec) -> tuple[AnySet, AnySet]:
    """The training set without a share of each class, and that share. The draw depends on the data set alone."""
    draw = generator("validation", spec.name)
    rest, held_out = [], []
    for label in range(train.classes):
        order = _draw_class(train.labels, label, None, draw)
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
    draw = generator("subset", spec.name, split)
    kept = [_draw_class(whole.labels, label, per_class, draw) for label in range(classes)]
    return replace(whole.select(torch.cat(kept).sort().values), classes=classes)


def _draw_class(labels: Tensor, label: int, count: int | None, draw: torch.Generator) -> Tensor:
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=draw)
    return members[order[:count]]


def _digits_table() -> NDArray[np.float64]:
    """What sklearn.datasets.load_digits reads, without its import, which takes longer than all of ``_digits``.

    Each line holds 64 pixels from 0 to 16 and the label: [1797, 65].
    """
    found = find_spec("sklearn")
    folder = Path(str(found.origin)).parent if found else Path()
    table: NDArray[np.float64] = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table


@cache
def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's digits as 32x32 RGB; of each class 100 images to train, the rest to test."""
    from PIL import Image

    table = _digits_table()
    grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = torch.from_numpy(np.stack(large)).unsqueeze(1).repeat(1, 3, 1, 1)
    whole = ImageSet(images, torch.from_numpy(table[:, -1]).long(), 10)
    draw = generator("digits", "split")
    train = torch.cat([_draw_class(whole.labels, label, 100, draw) for label in range(10)]).sort().values
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[train] = False
    return whole.select(train), whole.select(rest.nonzero().flatten())
