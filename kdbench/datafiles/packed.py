"""A data set in one NumPy file: train_images (N, H, W, 3) uint8, train_labels (N,), and the same for test."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.split import Split, check_kind, checked
from kdbench.errors import BadInput
from kdbench.store.files import write_atomically


def read_packed(facts: Dataset, root: Path) -> tuple[Split, Split]:
    """Training and test set. Raises BadInput for a damaged file, which its own sums tell, and for another content."""
    path = facts.packed(root)
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


def write_packed(facts: Dataset, root: Path, train: Split, test: Split) -> None:
    """Write it whole or not at all. Raises OSError where that is impossible."""
    arrays: dict[str, Any] = {}
    for name, split in (("train", train), ("test", test)):
        arrays[f"{name}_images"] = split.images.transpose(0, 2, 3, 1)
        arrays[f"{name}_labels"] = split.labels
    write_atomically(facts.packed(root), lambda file: np.savez(file, **arrays))
