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
    count = {"train": facts.train, "test": facts.test}[split]
    expected = (count, facts.size, facts.size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise BadInput(f"{source}: {split}_images is {images.dtype} {images.shape}, expected uint8 {expected}")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise BadInput(f"{source}: {split}_labels is {labels.dtype} {labels.shape}, expected whole numbers {(count,)}")
    if labels.min() < 0 or labels.max() >= facts.classes:
        raise BadInput(
            f"{source}: {split}_labels goes from {labels.min()} to {labels.max()}, not 0 to {facts.classes - 1}"
        )
    return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64))
