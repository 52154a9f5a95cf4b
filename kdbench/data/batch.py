"""What one training step gets to see."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of the stream.

    images:  [B, 3, H, W] float, normalised
    labels:  [B] int64, the labels that the student learns from (noisy under label noise)
    indices: [B] int64, positions in the training set as the scenario leaves it, 0 … train_size - 1
    clean_labels: [B] int64, the labels before label noise; None where there is none
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    clean_labels: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]
