"""One half of a data set as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.catalogue.datasets import Dataset
from kdbench.errors import BadInput


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
