"""Embedding graph alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.catalogue.hyperparameters import NonNegative
from kdbench.data.batch import Batch
from kdbench.methods.functional import check_equal_embeddings, in_float32, unit_rows
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class EGA(Term):
    """Embedding graph alignment: the batch's graph of correlations is the teacher's, and each sample is its own match.

    Equation:   r(X, Y)_ij = Pearson correlation of x_i and y_j over the D values of an embedding
                L_node = ‖ r(e_t, e_s) - I ‖,  L_edge = ‖ r(e_t, e_t) - r(e_s, e_s) ‖,  Frobenius norms, not squared
                L = node · L_node + edge · L_edge
    Shapes:     embeddings e [B, D] of one width: the node embeddings of teacher and student, 256 wide in the paper.
    Reduction:  the norms are sums over B² entries, so the loss grows with the batch: for unrelated embeddings of 256
                values about 4.1 and 1.4 with 16 samples, 9.0 and 5.7 with 64.
    Weights:    EGA 0.8, with node 1 and edge 0.3 inside. edge 0 is the paper's "without edge", node 0 "without node".
    Departures: none in value. The reference sends the loss's gradient into the teacher's new layers and discards it;
                here the teacher's outputs carry none.
    Numerics:   a constant embedding correlates with nothing (0) and gets no gradient; the reference returns NaN. Equal
                graphs have loss 0 and gradient 0.
    Source:     EGA's EGA.
    """

    paper = "Ma, Chen, Akata. Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment. BMVC 2022"
    reads = "embedding"
    reads_maps = False
    requires = ("equal_embeddings", "something_to_learn")
    version = 1

    def __init__(self, context: TermContext, *, node: NonNegative = 1.0, edge: NonNegative = 0.3) -> None:
        super().__init__(context)
        check_equal_embeddings("ega", context)
        self.node = node
        self.edge = edge

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum of node and edge alignment."""
        node, edge = ega_losses(student.embedding, teacher.embedding)
        return self.node * node + self.edge * edge


@in_float32
def ega_losses(student_embedding: Tensor, teacher_embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Node and edge loss of two embeddings [B, D]."""
    s, t = standardised(student_embedding), standardised(teacher_embedding)
    identity = torch.eye(len(s), dtype=s.dtype, device=s.device)
    node = torch.linalg.vector_norm(t @ s.T - identity)
    edge = torch.linalg.vector_norm(t @ t.T - s @ s.T)
    return node, edge


def standardised(embedding: Tensor) -> Tensor:
    """Each row of [B, D] with mean 0 and length 1, so that inner products are Pearson correlations."""
    return unit_rows(embedding - embedding.mean(1, keepdim=True), epsilon=1e-6)
