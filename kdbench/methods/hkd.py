"""Heterogeneous knowledge distillation with an auxiliary network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.catalogue.hyperparameters import NonNegative
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, unit_rows
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import LayerPair, Outputs


SMALLEST = 1e-7
"""Probabilities are no smaller in the logarithm."""


class HKD(Term):
    """HKD: images are as alike for the student, stage by stage, as for a wider student of the teacher.

    Equation:   C[a, b] = ( 1 + cosine of x_a and x_b ) / 2,  S[a, b] = 1 / ( 1 + sqrt( |x_a - x_b|² + 1e-6 ) ), each with
                its rows scaled to sum to 1
                L = sum over stages of  w · sum over the kernels K in C, S of
                    mean over a, b of ( K_t - K_s ) · ( ln K_t - ln K_s );  w = `first` for f1, 1 for the others
    Shapes:     stages f1 … fL, [B, C, H, W] flattened to x [B, C·H·W]; the i-th of the student with the i-th of the teacher.
                Both have equally many; channels and sizes may differ.
    Reduction:  mean over all B² entries, sum over kernels and stages.
    Teacher:    an auxiliary: the student's network of about twice the channels, trained from the teacher by the
                protocol's method `pkt`, at the rate of networks that the protocol does not name. It stands in the
                teacher's place for all terms of the method, KD, too. It is trained under the run's own scenario and trial
                (ours): with few labels or noisy ones it has no others either. It keeps the epoch that the protocol's
                score names.
    Weights:    SemCKD 1·ce + 1·kd + 1·hkd.
    Departures: the paper trains without labels, with a weight that falls from epoch to epoch, and the auxiliary from one
                that knows the labels already; SemCKD's version does neither. It meant to weigh each further stage 0.7 as
                much, but its code gives 100, 1, 1, …, and those weights made the tables. No doubled ShuffleNetV1 is
                published, though the paper has results of it.
                The reference computes in float32, and the distance of an image from itself is what rounding leaves of
                |x|² + |x|² - 2·x·x, under the square root. For untrained networks on CIFAR-100 that moves its value by up
                to 11 % and its gradient by 4 to 83 %, and the same images in another order give another gradient. SemCKD's
                tables presumably come from such gradients.
    Options:    diagonal: `exact` takes 0 for that distance, as the equation has it. `rounded` takes the reference's float32
                operations in their order: value and gradient are then the reference's, to 1e-4 on a CPU.
    Numerics:   a vector of length 0 stays 0 and passes no gradient; the reference divides 0 by 0 there.
    Source:     SemCKD's HKDLoss, after the authors' transfer of probabilistic knowledge.
    """

    paper = "Passalis, Tzelepi, Tefas. Heterogeneous Knowledge Distillation Using Information Flow Modeling. CVPR 2020"
    reads = "all stages' feature maps"
    requires = ("equal_levels",)
    auxiliary = "pkt"
    version = 1

    def __init__(
        self, context: TermContext, *, first: NonNegative = 100.0, diagonal: Literal["exact", "rounded"] = "exact"
    ) -> None:
        super().__init__(context)
        ours, theirs = len(context.student.stages), len(context.teacher.stages)
        if ours != theirs:
            raise BadInput(f"hkd pairs the stages one by one, and the student has {ours}, the teacher {theirs}")
        self.first = first
        self.loss = hkd_loss if diagonal == "exact" else rounded_hkd_loss

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum over the stages."""
        pairs = zip(student.stages, teacher.stages, strict=True)
        losses = [self.loss(ours.flatten(1), theirs.flatten(1)) for ours, theirs in pairs]
        return torch.stack([losses[0] * self.first, *losses[1:]]).sum()

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the stages one by one; the teacher is the auxiliary."""
        return [LayerPair(*pair) for pair in zip(student.stages, teacher.stages, strict=True)]


@in_float32
def hkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Jeffreys' divergence of both kernels between rows of [B, D_s] and rows of [B, D_t]."""
    return divergence(cosine_kernel(student), cosine_kernel(teacher)) + divergence(
        distance_kernel(student), distance_kernel(teacher)
    )


@in_float32
def rounded_hkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The same with the reference's operations in their order, which decides on what rounding leaves of them."""
    distances = rounded_distance_kernel(student), rounded_distance_kernel(teacher)
    return divergence(cosine_kernel(student), cosine_kernel(teacher)) + divergence(*distances)


def cosine_kernel(rows: Tensor) -> Tensor:
    """(1 + cosine) / 2 of all pairs of rows [B, D], each row of the result scaled to sum to 1."""
    unit = unit_rows(rows, epsilon=1e-6)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def distance_kernel(rows: Tensor) -> Tensor:
    """1 / (1 + distance) of all pairs of rows [B, D], each row of the result scaled to sum to 1."""
    squares = rows.square().sum(1)
    squared_distance = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)
    # A row is at distance 0 from itself. What rounding leaves of that would come back 500 times as large as a gradient.
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return student_t(squared_distance.masked_fill(itself, 0.0))


def rounded_distance_kernel(rows: Tensor) -> Tensor:
    """The same, but a row is as far from itself as rounding has it; float32 gradients depend on each operation here."""
    squares, squares_again = rows.square().sum(1), rows.square().sum(1)
    return student_t((squares[:, None] + squares_again - 2 * (rows @ rows.T)).clamp(min=0))


def student_t(squared_distance: Tensor) -> Tensor:
    """1 / (1 + distance), each row scaled to sum to 1."""
    kernel = 1 / (1 + (squared_distance + 1e-6).sqrt())
    return kernel / kernel.sum(1, keepdim=True)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all entries of the difference times the difference of logarithms."""
    student, teacher = student.clamp(min=SMALLEST), teacher.clamp(min=SMALLEST)
    return ((teacher - student) * (teacher.log() - student.log())).mean()
