"""Image folders: one folder per class, and images read as RGB."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdbench.catalogue.datasets import Dataset
from kdbench.catalogue.text import first_few
from kdbench.errors import BadInput


ENDINGS = (".jpeg", ".jpg", ".png")
LARGEST = 89_000_000
"""Pixels of the largest picture that is decoded: half a gigabyte."""


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its name; files that begin with a dot are other programs' metadata."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def read_picture(path: Path) -> Image.Image:
    """One picture in RGB with 8 bits, as it is stored: transparency is left out, and nothing is turned as EXIF says.

    Grey becomes three equal channels, 16 bits are scaled to 8. Raises BadInput, which names the file, where that is
    impossible.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > LARGEST:
                    raise ValueError(f"{image.width} × {image.height} pixels are too many")
                if image.mode.startswith("I"):
                    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
                return image.convert("RGB")
    except Exception as error:  # what is no picture makes the decoders raise almost anything
        raise BadInput(f"{path}: is not an image: {error}. Replace it by the official file.") from None


@dataclass(frozen=True)
class Listing:
    """The files of one half of a data set: names [N] below ``folder`` as bytes, labels [N]: places in the sorted classes."""

    folder: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]


def list_folders(facts: Dataset, root: Path) -> tuple[Listing, Listing]:
    """Training and test files. Raises BadInput where classes or images are not as many as there should be."""
    train, test = (root / facts.folder / part for part in ("train", "val"))
    classes, others = _classes(facts, root, train), _classes(facts, root, test)
    if classes != others:
        unshared = [f"{folder.name}/{name}" for folder, name in _only_in_one(train, classes, test, others)]
        raise BadInput(f"{train} and {test} have folders of different names: {first_few(unshared)}. {facts.by_hand}")
    for folder, found in ((train, classes), (test, others)):
        if len(found) != facts.classes:
            raise BadInput(
                f"{folder} has {len(found):,} folders of classes, expected {facts.classes:,}. {_own(facts)} {facts.by_hand}"
            )
    return _list(facts, train, classes, facts.train), _list(facts, test, classes, facts.test)


def class_names(known: Dataset, root: Path) -> tuple[str, ...]:
    """The class names in the order of the labels. () where they are the names of folders, and these are absent."""
    train = root / known.folder / "train"
    if known.class_names or not train.is_dir():
        return known.class_names
    return tuple(_classes(known, root, train))


def _own(facts: Dataset) -> str:
    return f"Pictures of one's own cannot take the place of {facts.name}'s."


def _only_in_one(train: Path, classes: list[str], test: Path, others: list[str]) -> list[tuple[Path, str]]:
    return [
        (folder, name)
        for folder, a, b in ((train, classes, others), (test, others, classes))
        for name in a
        if name not in set(b)
    ]


def _classes(facts: Dataset, root: Path, folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        raise BadInput(facts.how_to_get(root)) from None


def _list(facts: Dataset, folder: Path, classes: list[str], expected: int) -> Listing:
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            found = sorted(os.fsencode(f"{name}/{entry.name}") for entry in entries if is_picture(entry.name))
        names += found
        labels += [label] * len(found)
    if len(names) != expected:
        counts = np.bincount(labels, minlength=len(classes))
        extremes = f"{counts.min():,} in {classes[counts.argmin()]} to {counts.max():,} in {classes[counts.argmax()]}"
        raise BadInput(
            f"{folder} has {len(names):,} images, expected {expected:,} ({extremes}). {_own(facts)} {facts.by_hand}"
        )
    return Listing(folder, np.array(names, dtype=np.bytes_), np.array(labels, dtype=np.int64))
