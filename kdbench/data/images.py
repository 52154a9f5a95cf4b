"""Sets of images in memory, and where they come from."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kdbench.catalogue.datasets import Dataset, dataset
from kdbench.data.seeds import generator
from kdbench.data.vision import import_torchvision
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec


@dataclass(frozen=True)
class ImageSet:
    """images: [N, 3, H, W] uint8, labels: [N] int64 in 0 … classes - 1; clean: the labels before label noise, if any."""

    images: Tensor
    labels: Tensor
    classes: int
    clean: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def select(self, indices: Tensor) -> ImageSet:
        """The images at ``indices``, in that order."""
        clean = None if self.clean is None else self.clean[indices]
        return ImageSet(self.images[indices], self.labels[indices], self.classes, clean)


def load_images(spec: DatasetSpec, root: Path, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Training and test set. Raises BadInput where the files are missing or not what they should be."""
    facts = dataset(spec.name)
    train, test = _digits() if spec.name == "digits" else _cifar(facts, root, download)
    return (
        _part(train, spec, "train", spec.train_per_class),
        _part(test, spec, "test", spec.test_per_class),
    )


def _part(whole: ImageSet, spec: DatasetSpec, split: str, per_class: int | None) -> ImageSet:
    if spec.classes is None and per_class is None:
        return whole
    classes = spec.classes or whole.classes
    draw = generator("subset", spec.name, split)
    kept = [_draw_class(whole.labels, label, per_class, draw) for label in range(classes)]
    part = whole.select(torch.cat(kept).sort().values)
    return ImageSet(part.images, part.labels, classes)


def _draw_class(labels: Tensor, label: int, count: int | None, draw: torch.Generator) -> Tensor:
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=draw)
    return members[order[:count]]


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's digits as 32x32 RGB; of each class 100 images to train, the rest to test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = torch.from_numpy(np.stack(large)).unsqueeze(1).repeat(1, 3, 1, 1)
    whole = ImageSet(images, torch.from_numpy(digits.target).long(), 10)
    draw = generator("digits", "split")
    train = torch.cat([_draw_class(whole.labels, label, 100, draw) for label in range(10)]).sort().values
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[train] = False
    return whole.select(train), whole.select(rest.nonzero().flatten())


def _cifar(facts: Dataset, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    archive = root / f"{facts.name}.npz"
    if archive.is_file():
        return _from_archive(facts, archive)
    datasets = import_torchvision().datasets
    load = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[facts.name]
    try:
        with _one_at_a_time(root) if download else nullcontext():
            splits = [load(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError:
        raise BadInput(facts.how_to_get(root)) from None
    except OSError as error:
        raise BadInput(f"{facts.name} cannot be read from {root}: {error}") from None
    train, test = (ImageSet(_channels_first(s.data), torch.tensor(s.targets), facts.classes) for s in splits)
    return train, test


def _one_at_a_time(root: Path) -> FileLock:
    """The lock of whoever downloads: several workers may want the same files at once."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".download.lock")


def _from_archive(facts: Dataset, path: Path) -> tuple[ImageSet, ImageSet]:
    """One NumPy file: train_images (N, H, W, 3) uint8, train_labels (N,), and the same for test."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            splits = [
                _checked(facts, path, split, file[f"{split}_images"], file[f"{split}_labels"], count)
                for split, count in (("train", facts.train), ("test", facts.test))
            ]
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: does not hold {facts.name}: {error}") from None
    return splits[0], splits[1]


def _checked(facts: Dataset, path: Path, split: str, images: np.ndarray, labels: np.ndarray, count: int) -> ImageSet:
    expected = (count, facts.size, facts.size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise BadInput(f"{path}: {split}_images is {images.dtype} {images.shape}, expected uint8 {expected}")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise BadInput(f"{path}: {split}_labels is {labels.dtype} {labels.shape}, expected whole numbers {(count,)}")
    if labels.min() < 0 or labels.max() >= facts.classes:
        raise BadInput(
            f"{path}: {split}_labels goes from {labels.min()} to {labels.max()}, not 0 to {facts.classes - 1}"
        )
    return ImageSet(_channels_first(images), torch.from_numpy(labels.astype(np.int64)), facts.classes)


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
