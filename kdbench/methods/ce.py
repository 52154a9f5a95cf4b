"""Cross-entropy with the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs


class CrossEntropy(Term):
    """Cross-entropy with the labels: ordinary training, and a part of nearly every method.

    Equation:   L = -1/B · sum_b log softmax(z_b)[y_b]
    Shapes:     student logits z [B, K], labels y [B]. No teacher is needed.
    Reduction:  mean over the batch.
    Weights:    alone 1. Beside other terms CRD and SemCKD give it 1, SSKD 0.1; CRD's KD row uses 0.1.
    Labels:     the ones the student is given, noisy ones under label noise.
    Departures: none. No paper and no authors' code smooths labels or weights classes.
    Source:     the common practice of the four papers' codes.
    """

    paper = (
        "Bridle. Training Stochastic Model Recognition Algorithms as Networks Can Lead to Maximum Mutual Information "
        "Estimation of Parameters. NIPS 1989"
    )
    reads = "labels, the student's logits"
    needs_teacher = False
    version = 1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross-entropy; the teacher is ignored."""
        return cross_entropy(student.logits, batch.labels)


@in_float32
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, K] with class labels [B]."""
    return F.cross_entropy(logits, labels)
