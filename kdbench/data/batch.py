"""What one training step gets to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Copies:
    """Transformed copies of a batch's images, COPIES of each in a row.

    images: [COPIES · B, 3, H, W] float, normalised
    labels: [COPIES · B] int64, which of the possible transforms made each; 0 is the image itself
    teacher_images: the same transforms of the teacher's own view; None where it sees the students' images
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
    clean_labels: [B] int64, the labels before label noise; None where there is none
    teacher_images: [B, 3, H', W'], the teacher's own view of the images; None where it sees the students'
    copies: transformed copies of the images, by kind of transform (kdbench.data.copies); what no term needs is left out
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    clean_labels: Tensor | None = None
    teacher_images: Tensor | None = None
    copies: Mapping[str, Copies] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.images.shape[0]


class Batches(Protocol):
    """A source of batches that can replay any epoch: what the training loop needs of a stream."""

    def __len__(self) -> int:
        """Images per epoch."""

    def epoch(
        self, epoch: int, *, taught: bool = True, transforms: Sequence[str] = (), first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1, from batch number ``first`` on, counted from 0.

        ``taught`` says whether a teacher looks on, ``transforms`` which copies of the images are made.
        """
