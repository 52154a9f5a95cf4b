"""Knowledge distillation on softened logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import PositiveNumber
from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class KD(Term):
    """Knowledge distillation: the student's softened class probabilities follow the teacher's.

    Equation:   p = softmax(z_t / T),  q = softmax(z_s / T)
                L = T² / B · sum_b sum_k p_bk · log(p_bk / q_bk)
    Shapes:     logits z_s and z_t [B, K], the same K classes.
    Reduction:  sum over classes, mean over the batch; T² keeps the gradient's size when T changes.
    Weights:    CRD, SSKD  0.1·ce + 0.9·kd;  SemCKD  1·ce + 1·kd;  beside CRD's own term 1. T = 4 throughout.
    Departures: the paper writes a cross-entropy with soft targets; the benchmark code uses the KL divergence, which
                differs by the teacher's entropy, a constant: the gradients are equal. SSKD's equations sum over the
                data set, its code averages over the batch.
    Source:     CRD benchmark's KD; SSKD and SemCKD use the same form.
    """

    paper = "Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. arXiv:1503.02531, 2015"
    reads = "logits"
    reads_maps = False
    version = 1

    def __init__(self, context: TermContext, *, temperature: PositiveNumber = 4.0) -> None:
        super().__init__(context)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the KL divergence of the softened logits, times T²."""
        return kd_loss(student.logits, teacher.logits, self.temperature)


@in_float32
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL divergence from teacher to student of softmax(logits / temperature), times temperature²; logits [B, K]."""
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
