"""Correlation congruence."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveInt
from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32, project
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class CorrelationCongruence(Term):
    """Correlation congruence: what separates student and teacher on one sample does not recur on the next.

    Equation:   d_b = | g_s(e_s,b) - g_t(e_t,b) |,  g = linear with bias
                L = 1/(B-1) · sum over b < B of  d_b · d_b+1  (inner product)
    Shapes:     embeddings e [B, D]; the two widths may differ. g maps either to [B, width].
    Reduction:  sum over dimensions, mean over the B - 1 pairs of neighbours in the batch's order. 0 for one sample.
    Trained:    both linear maps, the teacher's, too. Nothing keeps them from shrinking to a constant, which is the
                loss's minimum; the published numbers have that flaw.
    Weights:    CRD, SemCKD 0.02.
    Departures: the paper compares kernel matrices of whole batches. This is the form that its authors gave to CRD's
                benchmark and that all of its numbers come from.
    Source:     CRD benchmark's Correlation, with its Embed layers.
    """

    paper = "Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang. Correlation Congruence for Knowledge Distillation. ICCV 2019"
    reads = "embedding"
    reads_maps = False
    version = 1
    bf16_version = 1

    def __init__(self, context: TermContext, *, width: PositiveInt = 128) -> None:
        super().__init__(context)
        self.embed_student = nn.Linear(context.student.embedding, width)
        self.embed_teacher = nn.Linear(context.teacher.embedding, width)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean product of neighbours' residuals."""
        ours, theirs = project(self.embed_student, student.embedding), project(self.embed_teacher, teacher.embedding)
        return cc_loss(ours, theirs)


@in_float32
def cc_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean inner product of the absolute residuals of neighbouring rows; embeddings [B, D] of one width."""
    residual = (student_embedding - teacher_embedding).abs()
    return (residual[:-1] * residual[1:]).sum() / max(len(residual) - 1, 1)
