"""Reads a data set as arrays from whichever form of its files is present: official files, folders or a packed .npz."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.catalogue.datasets import Dataset
from kdbench.catalogue.text import first_few
from kdbench.datafiles.download import NullReporter, ProgressReporter, checksum_mismatches, exclusive_lock
from kdbench.datafiles.folders import is_picture, list_folders, read_picture
from kdbench.errors import BadInput, KdbenchError
from kdbench.files import write_atomically


@dataclass(frozen=True)
class Split:
    """images: [N, 3, H, W] uint8, labels: [N] int64 in 0 … classes - 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def checked(facts: Dataset, source: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> Split:
    """A split of images [N, H, W, 3], if it is what the catalogue says. Raises BadInput otherwise."""
    check_kind(facts, source, f"{split}_images", images.shape, images.dtype)
    check_kind(facts, source, f"{split}_labels", labels.shape, labels.dtype)
    if labels.min() < 0 or labels.max() >= facts.classes:
        raise BadInput(
            f"{source}: {split}_labels goes from {labels.min()} to {labels.max()}, not 0 to {facts.classes - 1}"
        )
    return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64))


def check_kind(facts: Dataset, source: Path, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    """Raise BadInput unless an array's shape and type are what the catalogue says; ``name`` as in a packed file."""
    count = facts.train if name.startswith("train") else facts.test
    images = name.endswith("images")
    expected = (count, facts.size, facts.size, 3) if images else (count,)
    if shape != expected or (kind != np.uint8 if images else kind.kind not in "iu"):
        wanted = "uint8" if images else "whole numbers"
        raise BadInput(f"{source}: {name} is {kind} {shape}, expected {wanted} {expected}")


Arrays = tuple[NDArray[Any], NDArray[Any]]
"""Images (N, H, W, 3) and labels (N,)."""


def read_cifar(paths: Sequence[Path]) -> Arrays:
    """Pickled batches of planes of red, green and blue rows."""
    batches = [pickle.loads(path.read_bytes(), encoding="latin1") for path in paths]
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = [label for batch in batches for label in batch["fine_labels" if "fine_labels" in batch else "labels"]]
    return planes.transpose(0, 2, 3, 1), np.array(labels)


def read_stl10(images: Path, labels: Path) -> Arrays:
    """Bytes of red, green and blue planes, each column by column; labels 1 … 10."""
    planes = np.fromfile(images, dtype=np.uint8).reshape(-1, 3, 96, 96)
    return planes.transpose(0, 3, 2, 1), np.fromfile(labels, dtype=np.uint8).astype(np.int64) - 1


def read_svhn(path: Path) -> Arrays:
    """A MATLAB file with X (H, W, 3, N) and y (N, 1), where the digit 0 has the label 10."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    content = loadmat(path, variable_names=("X", "y"))
    return content["X"].transpose(3, 0, 1, 2), content["y"].astype(np.int64).flatten() % 10


def read_npz(facts: Dataset, root: Path) -> tuple[Split, Split]:
    """Training and test set. Raises BadInput for a damaged file, which its own sums tell, and for another content."""
    path = facts.npz(root)
    try:
        _check_kinds(facts, path)
        with path.open("rb") as opened, np.load(opened) as file:
            splits = [
                checked(facts, path, split, file[f"{split}_images"], file[f"{split}_labels"])
                for split in ("train", "test")
            ]
    except BadInput:
        raise
    except Exception as error:  # bytes that are no such file make the readers raise almost anything
        raise BadInput(f"{path}: does not hold {facts.name}: {error}") from None
    return splits[0], splits[1]


def _check_kinds(facts: Dataset, path: Path) -> None:
    """Raise BadInput for arrays of another kind before memory is taken for them."""
    with zipfile.ZipFile(path) as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            with archive.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                if version != (1, 0):
                    raise ValueError(f"{name} is of version {version} of NumPy's format")
                shape, _, kind = np.lib.format.read_array_header_1_0(member)
            check_kind(facts, path, name, shape, kind)


def write_npz(facts: Dataset, root: Path, train: Split, test: Split) -> None:
    """Write it whole or not at all. Raises OSError where that is impossible."""
    arrays: dict[str, Any] = {}
    for name, split in (("train", train), ("test", test)):
        arrays[f"{name}_images"] = split.images.transpose(0, 2, 3, 1)
        arrays[f"{name}_labels"] = split.labels
    write_atomically(facts.npz(root), lambda file: np.savez(file, **arrays))


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
        pixels[index] = _read_square(path, facts.size)
    return checked(facts, root / facts.folder, split, pixels, np.array([label for _, label in images]))


def _read_square(path: Path, size: int) -> NDArray[np.uint8]:
    """One image [H, W, 3]; grey ones get three equal channels."""
    pixels = np.asarray(read_picture(path))
    if pixels.shape != (size, size, 3):
        raise BadInput(f"{path}: has {pixels.shape[1]}×{pixels.shape[0]} pixels, expected {size}×{size}")
    return pixels


def read_splits(facts: Dataset, root: Path, reporter: ProgressReporter | None = None) -> tuple[Split, Split]:
    """Training and test set of a data set that fits into memory.

    Raises BadInput where files are missing, not the official ones, or hold something else than they should.
    """
    if facts.missing(root):
        raise BadInput(facts.how_to_get(root))
    if facts.name == "tinyimagenet":
        return load_tinyimagenet(facts, root, reporter)
    if facts.npz(root).is_file():
        return read_npz(facts, root)
    folder = root / facts.folder
    try:
        if checksum_mismatches(facts, root):
            raise BadInput(facts.how_to_get(root))
        train, test = _read(facts, folder)
    except OSError as error:
        raise BadInput(f"{facts.name} cannot be read from {folder}: {error.strerror or error}") from None
    return checked(facts, folder, "train", *train), checked(facts, folder, "test", *test)


def _read(facts: Dataset, folder: Path) -> tuple[Arrays, Arrays]:
    if facts.name == "stl10":
        train, test = (read_stl10(folder / f"{part}_X.bin", folder / f"{part}_y.bin") for part in ("train", "test"))
    elif facts.name == "svhn":
        train, test = (read_svhn(folder / f"{part}_32x32.mat") for part in ("train", "test"))
    else:
        parts = [[folder / file for file in facts.files if file.startswith("test") == last] for last in (False, True)]
        train, test = (read_cifar(paths) for paths in parts)
    return train, test


def prepare(facts: Dataset, root: Path, reporter: ProgressReporter) -> tuple[int, int]:
    """Build what is kept decoded, and check files and counts. Returns how many training and test images there are.

    Raises BadInput where they are not what they should be, KdbenchError where nothing can be written.
    """
    if not facts.files:
        return facts.train, facts.test
    if facts.streamed:
        files = list_folders(facts, root)
        return len(files[0].names), len(files[1].names)
    train, test = read_splits(facts, root, reporter)
    if facts.name == "tinyimagenet" and not facts.npz(root).is_file():
        raise KdbenchError(f"{facts.npz(root)} could not be written: every run would decode the images again")
    return len(train.labels), len(test.labels)
