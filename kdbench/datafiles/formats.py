"""The formats of the official files. Their MD5 sums have been compared before they are read."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
