"""Attention transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32, paired_stages, pool_to_smaller, unit_rows
from kdbench.methods.term import Term
from kdbench.models.outputs import LayerPair, Outputs


class AttentionTransfer(Term):
    """Attention transfer: where the student's maps are strong follows where the teacher's are.

    Equation:   a(F) = v / |v|  with v = mean over C of F², flattened over H and W
                L = sum over stages of  mean over B, H·W of ( a(F_s) - a(F_t) )²
    Shapes:     stages f1 … fL, [B, C, H, W]: the i-th of the student with the i-th of the teacher, up to the shorter
                network's last. The larger map of a pair is average-pooled to the smaller side. Channel counts are free.
    Reduction:  mean over batch and positions, sum over stages.
    Weights:    CRD, SSKD, SemCKD 1000.
    Departures: the paper sums over channels and takes half the un-squared norm of the difference; its authors' code,
                CRD's and the published numbers use the mean of squares above.
    Numerics:   an all-zero map has a(F) = 0 and gets no gradient.
    Source:     CRD benchmark's Attention.
    """

    paper = "Zagoruyko, Komodakis. Paying More Attention to Attention. ICLR 2017"
    reads = "all stages' feature maps"
    requires = ("feature_maps",)
    version = 1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum over paired stages."""
        return torch.stack([at_loss(s, t) for s, t in paired_stages(student, teacher)]).sum()

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the paired stages, as they are."""
        return [LayerPair(*pair) for pair in paired_stages(student, teacher)]


@in_float32
def at_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the attention of two maps [B, C, H, W]; the larger one is pooled."""
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    return (attention(student_map) - attention(teacher_map)).square().mean()


def attention(feature_map: Tensor) -> Tensor:
    """Channel mean of the squares of [B, C, H, W], as rows [B, H·W] of length 1."""
    return unit_rows(feature_map.square().mean(1).flatten(1), epsilon=1e-12)
