"""Data sets as .npz files of arrays: names, splits, reading and writing."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.catalogue.datasets import Dataset
from kdbench.errors import BadInput
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
