"""Similarity-preserving distillation."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32, unit_rows
from kdbench.methods.term import Term
from kdbench.models.outputs import LayerPair, Outputs


class SimilarityPreserving(Term):
    """Similarity-preserving distillation: images alike to the teacher become alike to the student.

    Equation:   G = X·Xᵀ [B, B], each row scaled to length 1
                L = 1/B² · sum of squares of ( G_s - G_t )
    Shapes:     X [B, C·H·W]: the last stage's feature map, flattened. The networks' maps may differ in every size.
    Reduction:  sum over the B² pairs, divided by B²; so it depends on the batch size.
    Weights:    CRD, SSKD, SemCKD 3000.
    Departures: the paper sums over several layer pairs; the benchmarks take the last stage alone.
    Numerics:   a sample with an all-zero map has a zero row and gets no gradient through it. The reference clamps the
                row's length at 1e-12 and returns gradients of 1e10 there.
    Source:     CRD benchmark's Similarity, which the paper's authors checked.
    """

    paper = "Tung, Mori. Similarity-Preserving Knowledge Distillation. ICCV 2019"
    reads = "the last stage's feature map"
    requires = ("feature_maps",)
    version = 1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean squared difference of the two similarity matrices."""
        return sp_loss(student.features[-1], teacher.features[-1])

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the pair of last stages."""
        return [LayerPair(student.features[-1], teacher.features[-1])]


@in_float32
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the row-normalised Gram matrices of two maps [B, …]."""
    return (similarity(student_map) - similarity(teacher_map)).square().mean()


def similarity(feature_map: Tensor) -> Tensor:
    """Gram matrix [B, B] of the flattened samples of [B, …], each row of length 1."""
    samples = feature_map.flatten(1)
    return unit_rows(samples @ samples.T, epsilon=1e-6)
