"""Probabilistic knowledge transfer."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32, unit_rows
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs


class PKT(Term):
    """Probabilistic knowledge transfer: how likely samples are each other's neighbours is the same in both embeddings.

    Equation:   u = e / |e|,  S = ( u·uᵀ + 1 ) / 2,  P = S with each row scaled to sum 1
                L = 1/B² · sum_ij P_t,ij · log( (P_t,ij + ε) / (P_s,ij + ε) ),  ε = 1e-7
    Shapes:     embeddings e [B, D]; the two widths may differ.
    Reduction:  mean over all B² pairs. Values are of the order of 1e-4, hence the large weight.
    Weights:    CRD, SSKD, SemCKD 30000.
    Departures: the paper leaves a sample's similarity to itself out; the authors' code keeps it, and averages over
                both axes instead of summing over one. It also adds 1e-7 to |e|, which changes nothing that can be seen.
    Numerics:   a zero embedding is as similar to everything (1/2) as in the reference, but gets no gradient where the
                reference returns NaN. It is computed in float64: its terms cancel to some 1e-5 of their size.
    Source:     CRD benchmark's PKT, the authors' code.
    """

    paper = "Passalis, Tefas. Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018"
    reads = "embedding"
    reads_maps = False
    version = 2

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean divergence of the two neighbour distributions."""
        return pkt_loss(student.embedding, teacher.embedding)


@in_float32
def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Divergence of the neighbour probabilities of two embeddings [B, D_s] and [B, D_t], mean over B² pairs."""
    p, q = neighbour_probabilities(teacher_embedding), neighbour_probabilities(student_embedding)
    epsilon = 1e-7
    return (p * ((p + epsilon) / (q + epsilon)).log()).mean().to(student_embedding.dtype)


def neighbour_probabilities(embedding: Tensor) -> Tensor:
    """Cosine similarities of [B, D], shifted to [0, 1], as rows [B, B] that sum to 1; float64."""
    # The terms of the divergence cancel to some 1e-5 of their size: float32 would leave four of its digits.
    directions = unit_rows(embedding.double(), epsilon=1e-6)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
