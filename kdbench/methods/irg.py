"""Instance relationship graph."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class IRG(Term):
    """Instance relationship graph: distances between samples follow the teacher's, and so do the samples themselves.

    Equation:   D(X)_ij = |x_i - x_j|² / max over i, j of the same
                edge   = mean_ij ( D(e_s) - D(e_t) )²
                vertex = mean over B, D of ( e_s - e_t )², where both widths are equal; else left out
                L = edge + vertex
                with `transformations`, for each pair of stages (f1, f2), (f3, f4):
                L = L + ( m(D(f_s,1), D(f_s,2)) - m(D(f_t,1), D(f_t,2)) )²,  m = mean of the squared difference,
                and the same with m(f_1, f_2) itself where the two maps have one shape, in either network
    Shapes:     embeddings e [B, D]; stages f1 … fL, [B, C, H, W], flattened; as many as the shorter network has.
    Reduction:  means over all elements, sum over terms. For embeddings of different width the loss is about 0.02:
                times 0.005 it moves nothing, in the published numbers too.
    Weights:    SemCKD 0.005. EGA's tables have IRG, its code does not; its protocol here uses 0.16: the original's 0.005
                in the original's reduction, sum / 2B, which is 32 times the mean over B² for B = 64. Neither has
                transformations: SemCKD's scripts leave them off, EGA's vision transformers have no stages.
    Departures: the original treats the largest distance as a constant and lets half of the gradient through; its code
                has no vertex term and compares transformations per sample. SemCKD's is the one built here.
    Numerics:   coincident samples have distance 0 and pass no gradient; so does a batch of equal samples.
    Source:     SemCKD's IRG; the original's Caffe layers.
    """

    paper = "Liu, Cao, Li, Yuan, Hu, Li, Duan. Knowledge Distillation via Instance Relationship Graph. CVPR 2019"
    reads = "embedding; with transformations, all stages' feature maps"
    reads_maps = "transformations"
    requires = ("transformed_stages",)
    version = 1

    def __init__(self, context: TermContext, *, transformations: bool = False) -> None:
        super().__init__(context)
        if transformations and min(len(context.student.stages), len(context.teacher.stages)) < 2:
            raise BadInput("irg: transformations compare pairs of stages, and one of the networks has none")
        self.transformations = transformations

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum of edge, vertex and transformation losses."""
        loss = irg_loss(student.embedding, teacher.embedding)
        if self.transformations:
            pairs = zip(consecutive(student.stages), consecutive(teacher.stages), strict=False)
            for (s1, s2), (t1, t2) in pairs:
                loss = loss + transformation_loss(s1, s2, t1, t2)
        return loss


@in_float32
def irg_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Edge loss of embeddings [B, D_s] and [B, D_t], plus the vertex loss where D_s = D_t."""
    edge = F.mse_loss(edges(student_embedding), edges(teacher_embedding))
    if student_embedding.shape != teacher_embedding.shape:
        return edge
    return edge + F.mse_loss(student_embedding, teacher_embedding)


@in_float32
def transformation_loss(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """How differently the graph changes between two stages of student and teacher; maps [B, C, H, W]."""
    change_s, change_t = F.mse_loss(edges(s1), edges(s2)), F.mse_loss(edges(t1), edges(t2))
    loss = (change_s - change_t).square()
    if s1.shape == s2.shape and t1.shape == t2.shape:
        loss = loss + (F.mse_loss(s1, s2) - F.mse_loss(t1, t2)).square()
    return loss


def edges(samples: Tensor) -> Tensor:
    """Squared distances [B, B] of the flattened samples of [B, …], divided by the largest."""
    wide = samples.flatten(1).double()
    centred = wide - wide.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    squared = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0)
    return (squared / squared.max().clamp(min=1e-12)).to(samples.dtype)


def consecutive(stages: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The first stage with the second, the third with the fourth; a last one without partner is left out."""
    return list(itertools.pairwise(stages))[::2]
