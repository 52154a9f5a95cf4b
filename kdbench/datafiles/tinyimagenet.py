"""TinyImageNet's folders, decoded once into one NumPy file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.download import NullReporter, ProgressReporter, exclusive_lock
from kdbench.datafiles.folders import first_few, is_picture, read_picture
from kdbench.datafiles.readers import Split, checked, read_npz, write_npz
from kdbench.errors import BadInput


Listed = list[tuple[Path, int]]
"""Image files and their labels."""


def load_tinyimagenet(facts: Dataset, root: Path, reporter: ProgressReporter | None = None) -> tuple[Split, Split]:
    """Training and test set from the NumPy file; built first where it is missing or damaged and the folders are there."""
    if facts.npz(root).is_file():
        with suppress(BadInput):
            return read_npz(facts, root)
    if not (root / facts.folder).is_dir():
        return read_npz(facts, root)  # says what is wrong with it
    if not os.access(root, os.W_OK):
        return _decode(facts, root)
    return _build(facts, root, reporter or NullReporter())


def _build(facts: Dataset, root: Path, reporter: ProgressReporter) -> tuple[Split, Split]:
    """Decode the folders and write the file, unless another process has just done so. A full disk costs only the file."""
    with exclusive_lock(facts, root, reporter):
        if facts.npz(root).is_file():
            with suppress(BadInput):
                return read_npz(facts, root)
            reporter.note(f"{facts.npz(root)} is damaged: it is built again")
        reporter.note(f"decoding the images of {root / facts.folder}")
        train, test = _decode(facts, root)
        try:
            write_npz(facts, root, train, test)
        except OSError as error:
            reporter.note(f"{facts.npz(root)} cannot be written: {error.strerror or error}")
    return train, test


def listed(facts: Dataset, root: Path) -> tuple[Listed, Listed]:
    """The training and test images and their labels: places in the sorted list of classes.

    Raises BadInput where the classes, or the images of one, are not as many as there should be.
    """
    folder = root / facts.folder
    try:
        classes = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
        if len(classes) != facts.classes:
            raise BadInput(f"{folder / 'wnids.txt'} names {len(classes)} classes, expected {facts.classes}")
        label = {name: index for index, name in enumerate(classes)}
        train = [
            (path, label[name])
            for name in classes
            for path in sorted((folder / "train" / name / "images").iterdir())
            if is_picture(path.name)
        ]
        rows = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        test = [(folder / "val" / "images" / row.split("\t")[0], label[row.split("\t")[1]]) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, IndexError) as error:
        raise BadInput(f"{folder} does not hold {facts.name}: {error}. {facts.how_to_get(root)}") from None
    _check_counts(facts, folder, classes, {"train": train, "val": test})
    return train, test


def _check_counts(facts: Dataset, folder: Path, classes: list[str], found: dict[str, Listed]) -> None:
    for name, total in (("train", facts.train), ("val", facts.test)):
        counts = np.bincount([label for _, label in found[name]], minlength=facts.classes)
        each = total // facts.classes
        if (counts != each).any():
            wrong = [f"{counts[at]} in {classes[at]}" for at in np.flatnonzero(counts != each)]
            raise BadInput(
                f"{folder / name} has {counts.min()} to {counts.max()} images in a class, expected {each}: {first_few(wrong)}"
            )


def _decode(facts: Dataset, root: Path) -> tuple[Split, Split]:
    train, test = listed(facts, root)
    return _decode_split(facts, root, "train", train), _decode_split(facts, root, "test", test)


def _decode_split(facts: Dataset, root: Path, split: str, images: Sequence[tuple[Path, int]]) -> Split:
    pixels = np.empty((len(images), facts.size, facts.size, 3), np.uint8)
    for index, (path, _) in enumerate(images):
        pixels[index] = _read(path, facts.size)
    return checked(facts, root / facts.folder, split, pixels, np.array([label for _, label in images]))


def _read(path: Path, size: int) -> NDArray[np.uint8]:
    """One image [H, W, 3]; grey ones get three equal channels."""
    pixels = np.asarray(read_picture(path))
    if pixels.shape != (size, size, 3):
        raise BadInput(f"{path}: has {pixels.shape[1]}×{pixels.shape[0]} pixels, expected {size}×{size}")
    return pixels
