"""Relational knowledge distillation: distances and angles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import NonNegative
from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


COINCIDENT = 1e-4
"""Two embeddings closer than this share of the batch's root mean square length count as the same point."""

TOO_SMALL = 1e-6
"""So do two that are closer than this; it is the reference's lower bound of a distance."""


class RKD(Term):
    """Relational knowledge distillation: distances and angles between samples follow the teacher's.

    Equation:   D_ij = |e_i - e_j| / mean of |e_i - e_j| over i ≠ j
                A_ijk = cosine between e_i - e_j and e_i - e_k
                h(a, b) = (a - b)²/2 where |a - b| < 1, else |a - b| - 1/2
                L = distance_weight · mean_ij h(D_s, D_t) + angle_weight · mean_ijk h(A_s, A_t)
    Shapes:     embeddings e [B, D]; the two widths may differ.
    Reduction:  means over all B² pairs and B³ triples, the degenerate ones (0 on both sides) included.
    Weights:    CRD, SSKD, SemCKD 1, with 25 and 50 inside.
    Departures: the paper sums over distinct pairs and triples. The student's mean distance is part of the graph.
                Angles are compared as cosines.
    Numerics:   coincident embeddings (closer than 1e-4 of the batch's root mean square length, or than 1e-6) count as
                distance 0 and cosine 0 and pass no gradient; the reference's grows to 1e10 there. Inner products run
                in float64: so the cosines of B³ triples come from one B × B product, without B² difference vectors.
    Source:     CRD benchmark's RKDLoss, after the authors' code.
    """

    paper = "Park, Kim, Lu, Cho. Relational Knowledge Distillation. CVPR 2019"
    reads = "embedding"
    reads_maps = False
    requires = ("something_to_learn",)
    version = 1

    def __init__(
        self, context: TermContext, *, distance_weight: NonNegative = 25.0, angle_weight: NonNegative = 50.0
    ) -> None:
        super().__init__(context)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum of distance and angle loss."""
        distance = rkd_distance_loss(student.embedding, teacher.embedding)
        angle = rkd_angle_loss(student.embedding, teacher.embedding)
        return self.distance_weight * distance + self.angle_weight * angle


@in_float32
def rkd_distance_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Huber loss between the relative distances of two embeddings [B, D_s] and [B, D_t]."""
    return F.smooth_l1_loss(relative_distances(student_embedding), relative_distances(teacher_embedding))


@in_float32
def rkd_angle_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Huber loss between the angles' cosines in two embeddings [B, D_s] and [B, D_t]."""
    return F.smooth_l1_loss(cosines(student_embedding), cosines(teacher_embedding))


def relative_distances(embedding: Tensor) -> Tensor:
    """Euclidean distances [B, B] of the rows of [B, D], divided by their mean off the diagonal."""
    _, squared, apart = _products(embedding)
    distances = torch.where(apart, squared, 1.0).sqrt() * apart
    size = len(embedding)
    mean = distances.sum() / max(size * (size - 1), 1)
    return (distances / torch.where(mean > 0, mean, 1.0)).to(embedding.dtype)


def cosines(embedding: Tensor) -> Tensor:
    """Cosines [B, B, B] of the angles at row i between rows j and k of [B, D]."""
    gram, squared, apart = _products(embedding)
    inner = (gram.diagonal()[:, None] - gram)[:, :, None] + (gram[None, :, :] - gram[:, None, :])
    inverse = (torch.where(apart, squared, 1.0).rsqrt() * apart).to(embedding.dtype)
    return inner.to(embedding.dtype) * inverse[:, :, None] * inverse[:, None, :]


def _products(embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of the centred rows, squared distances, and which pairs do not coincide; each [B, B]."""
    wide = embedding.double()
    centred = wide - wide.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    squared = squares[:, None] + squares[None, :] - 2 * gram
    apart = squared > (COINCIDENT**2 * wide.detach().square().sum(1).mean()).clamp(min=TOO_SMALL**2)
    return gram, squared, apart
