"""Noise-contrastive estimation between the samples of a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import PositiveNumber
from kdbench.data.batch import Batch
from kdbench.methods.functional import check_equal_embeddings, in_float32, unit_rows
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class NCE(Term):
    """Noise-contrastive estimation: a student's embedding picks out the teacher's embeddings of its own class.

    Equation:   u = e_s / |e_s|,  v = e_t / |e_t|,  p_i = softmax over j of ( u_i · v_j / T )
                P_i = { j: y_j = y_i }, itself included;  N_i = the rest of the batch
                L = mean_i [ - mean over P_i of log p_ij  -  mean over N_i of log(1 - p_ij) ]
    Shapes:     embeddings e [B, D] of one width, labels y [B].
    Reduction:  means over positives, negatives and batch.
    Weights:    EGA 1 (its code's default), T = 0.1.
    Departures: CCL uses the loss in both directions and a temperature of 0.5 beside an audio teacher; EGA's has the
                student's embeddings as anchors only. The reference adds 1e-10 inside the logarithms.
    Numerics:   where a batch has one class, the mean over N_i is left out; the reference returns NaN. p is capped at
                1 - 1e-6 in the second logarithm. A zero embedding has cosine 0 with everything and gets no gradient.
    Source:     EGA's NCE, after CCL's.
    """

    paper = (
        "Chen, Xian, Koepke, Shan, Akata. "
        "Distilling Audio-Visual Knowledge by Compositional Contrastive Learning. CVPR 2021"
    )
    reads = "embedding, labels"
    reads_maps = False
    requires = ("equal_embeddings",)
    version = 1

    def __init__(self, context: TermContext, *, temperature: PositiveNumber = 0.1) -> None:
        super().__init__(context)
        check_equal_embeddings("nce", context)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the contrastive loss within the batch."""
        return nce_loss(student.embedding, teacher.embedding, batch.labels, self.temperature)


@in_float32
def nce_loss(student_embedding: Tensor, teacher_embedding: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Contrast of the rows of two embeddings [B, D]; the positives of a row have its label, labels [B]."""
    anchors, others = unit_rows(student_embedding, epsilon=1e-6), unit_rows(teacher_embedding, epsilon=1e-6)
    log_p = F.log_softmax(anchors @ others.T / temperature, dim=1)
    log_rest = (-log_p.exp().clamp(max=1 - 1e-6)).log1p()
    positive = labels[:, None] == labels[None, :]
    return -(mean_where(positive, log_p) + mean_where(~positive, log_rest)).mean()


def mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean [B] of the chosen values of each row of [B, B]; 0 for a row where none is."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)
