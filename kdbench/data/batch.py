"""Training batches, and random generators seeded by purpose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded from JSON-ready values."""
    return torch.Generator().manual_seed(seed_of(*parts))


def seed_default_generators(seed: int, device: torch.device) -> None:
    """Seed the generators from which torch draws on the CPU and on a device.

    torch.manual_seed seeds those of every kind of device that torch knows, which takes some ten times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


VIEWS_PER_IMAGE = 3
"""The number of transformed views of each image, as in SSKD's code."""


@dataclass(frozen=True)
class AugmentedViews:
    """Transformed views of a batch's images, VIEWS_PER_IMAGE of each image in a row.

    images: [VIEWS_PER_IMAGE · B, 3, H, W] float, normalised
    labels: [VIEWS_PER_IMAGE · B] int64, the index of the transform that made each; 0 is the identity
    teacher_images: the same transforms of the teacher's own images; None if it sees the students'
    """

    images: Tensor
    labels: Tensor
    teacher_images: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One batch of the stream.

    images:  [B, 3, H, W] float, normalised
    labels:  [B] int64, the labels that the student learns from (noisy under label noise)
    indices: [B] int64, positions in the training set as the scenario leaves it, 0 … train_size - 1
    clean_labels: [B] int64, the labels before label noise; None without noise
    teacher_images: [B, 3, H', W'], the images in the teacher's own preprocessing; None if it sees the students'
    views: transformed views of the images, by kind of transform (kdbench.data.views); only the kinds that a term needs
    taught: the logits [B, K] and embeddings [B, D] of the teacher's frozen network, where they were looked up instead of
        being computed from its images (kdbench.data.output_cache)
    portions: the number of equal portions, one for each device, that the batch was divided into; this is one of them
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    clean_labels: Tensor | None = None
    teacher_images: Tensor | None = None
    views: Mapping[str, AugmentedViews] = field(default_factory=dict)
    taught: tuple[Tensor, Tensor] | None = None
    portions: int = 1

    def __len__(self) -> int:
        return self.labels.shape[0]


class Portion(NamedTuple):
    """The portion of each batch that one of ``size`` devices sees: images in a row, as many as every other one.

    A batch is divided where all portions are equal and hold at least two images of each of the parts, ``multiple`` in
    all, that must not be torn; another, such as a short last one, goes to every device whole.
    """

    rank: int = 0
    size: int = 1
    multiple: int = 1

    def of(self, start: int, stop: int) -> tuple[slice, int]:
        """The images of the batch ``start`` … ``stop`` that the device sees, and the number of portions."""
        count = stop - start
        if self.size == 1 or count % self.multiple or count < 2 * self.multiple:
            return slice(start, stop), 1
        own = count // self.size
        return slice(start + self.rank * own, start + (self.rank + 1) * own), self.size


UNDIVIDED = Portion()


class Batches(Protocol):
    """A source of batches that can replay any epoch."""

    def __len__(self) -> int:
        """Images per epoch."""

    def epoch(
        self,
        epoch: int,
        *,
        with_teacher: bool = True,
        transforms: Sequence[str] = (),
        first: int = 0,
        portion: Portion = UNDIVIDED,
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1, from batch number ``first`` on, counted from 0.

        ``with_teacher`` includes the teacher's own images; ``transforms`` names the kinds of views to generate. With a
        ``portion`` those of a device come instead: together they are the same batches.
        """
