"""What every network returns, teacher or student, training or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """All that a distillation method may read from a network.

    logits:         [B, K]
    embedding:      [B, D], the input of the classifier
    features:       the stem's map f0, then one map per stage f1 … fL, each [B, C, H, W], as the authors' networks expose them
    preactivations: for f1 … fL the map before the stage's last activation (the following batch norm's output in
                    pre-activation networks; the map itself where a stage ends without activation)
    """

    logits: Tensor
    embedding: Tensor
    features: list[Tensor]
    preactivations: list[Tensor]

    @property
    def stages(self) -> list[Tensor]:
        """f1 … fL: the feature maps without the stem."""
        return self.features[1:]


class Association(NamedTuple):
    """A map of the student and the map of the teacher that a loss term has it learn from.

    student:    [B, …], as the network gives it
    teacher:    [B, …], likewise
    weight:     [B], how much each image's pair counts; None for 1
    compared:   what the term makes of both to compare them (a projection, a pooled map), each [B, …]; None where that
                is the maps themselves
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor | None = None
    compared: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Shapes:
    """The sizes of one network's outputs for one image: classes, embedding width, and [C, H, W] of each of f0 … fL."""

    logits: int
    embedding: int
    features: tuple[tuple[int, int, int], ...]

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        return self.features[1:]

    @classmethod
    def of(cls, outputs: Outputs) -> Shapes:
        """Read the sizes off the outputs of one forward pass."""
        maps = tuple((f.shape[1], f.shape[2], f.shape[3]) for f in outputs.features)
        return cls(outputs.logits.shape[1], outputs.embedding.shape[1], maps)
