"""Compositional contrastive learning, without the composition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import PositiveNumber
from kdbench.data.batch import Batch
from kdbench.methods.functional import check_equal_embeddings, in_float32
from kdbench.methods.nce import nce_loss
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class CCL(Term):
    """Compositional contrastive learning as EGA compares with it: contrast of embeddings and a symmetric KL of classes.

    Equation:   q = softmax(z)
                J = 1/(2B) · sum_b [ KL(q_t,b ‖ q_s,b) + KL(q_s,b ‖ q_t,b) ]
                L = nce(e_s, e_t, y; T) + J
    Shapes:     embeddings e [B, D] of one width, logits z [B, K], labels y [B].
    Reduction:  of `nce`; J sums over classes and averages over the batch.
    Weights:    EGA 1 (its code's default), T = 0.1.
    Departures: the paper composes the embeddings of two teachers with a residual layer that has losses of its own. EGA
                left that out; so does this term. J goes by the name of Jensen-Shannon divergence there and is none.
    Numerics:   as in `nce`; J from log-softmax, so that no logarithm of an underflowing probability is taken.
    Source:     EGA's CCL, after CCL's code.
    """

    paper = (
        "Chen, Xian, Koepke, Shan, Akata. "
        "Distilling Audio-Visual Knowledge by Compositional Contrastive Learning. CVPR 2021"
    )
    reads = "embedding, logits, labels"
    reads_maps = False
    requires = ("equal_embeddings",)
    version = 1

    def __init__(self, context: TermContext, *, temperature: PositiveNumber = 0.1) -> None:
        super().__init__(context)
        check_equal_embeddings("ccl", context)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum of contrast and symmetric divergence."""
        contrast = nce_loss(student.embedding, teacher.embedding, batch.labels, self.temperature)
        return contrast + symmetric_kl(student.logits, teacher.logits)


@in_float32
def symmetric_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the sum of both KL divergences of the classes of two networks, batch mean; logits [B, K]."""
    log_q, log_p = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2
