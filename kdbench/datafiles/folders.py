"""Images that stay files: a folder for each class. Only names and labels are held."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.catalogue.datasets import Dataset
from kdbench.errors import BadInput


ENDINGS = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class Listing:
    """The files of one half of a data set: names [N] below ``folder`` as bytes, labels [N]: places in the sorted classes."""

    folder: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]


def list_folders(facts: Dataset, root: Path) -> tuple[Listing, Listing]:
    """Training and test files. Raises BadInput where classes or images are not as many as there should be."""
    train, test = (root / facts.folder / part for part in ("train", "val"))
    classes = _classes(facts, root, train)
    if _classes(facts, root, test) != classes:
        raise BadInput(f"{train} and {test} have folders of different names. {facts.how_to_get(root)}")
    return _list(facts, root, train, classes, facts.train), _list(facts, root, test, classes, facts.test)


def _classes(facts: Dataset, root: Path, folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        raise BadInput(facts.how_to_get(root)) from None
    if len(classes) != facts.classes:
        raise BadInput(
            f"{folder} has {len(classes):,} folders of classes, expected {facts.classes:,}. {facts.how_to_get(root)}"
        )
    return classes


def _list(facts: Dataset, root: Path, folder: Path, classes: list[str], expected: int) -> Listing:
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            found = sorted(os.fsencode(f"{name}/{e.name}") for e in entries if e.name.lower().endswith(ENDINGS))
        names += found
        labels += [label] * len(found)
    if len(names) != expected:
        raise BadInput(f"{folder} has {len(names):,} images, expected {expected:,}. {facts.how_to_get(root)}")
    return Listing(folder, np.array(names, dtype=np.bytes_), np.array(labels, dtype=np.int64))
