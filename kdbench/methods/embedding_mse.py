"""Mean squared error between embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import check_equal_embeddings, in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class EmbeddingMSE(Term):
    """Mean squared error between the embeddings: what EGA compares with under the name of FitNet.

    Equation:   L = mean over B, D of ( e_s - e_t )²
    Shapes:     embeddings e [B, D], of one width: node embeddings in EGA's protocol.
    Reduction:  mean over all elements.
    Weights:    EGA's tables do not state one; its protocol here uses CRD's 100 for FitNet.
    Departures: FitNet proper regresses a feature map (the term `fitnet`); frozen vision transformers have none.
    Source:     EGA's FitNet.
    """

    paper = "Ma, Chen, Akata. Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment. BMVC 2022"
    reads = "embedding"
    reads_maps = False
    requires = ("equal_embeddings",)
    version = 1

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        check_equal_embeddings("embedding-mse", context)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean squared difference."""
        return embedding_mse(student.embedding, teacher.embedding)


@in_float32
def embedding_mse(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean squared difference of two embeddings [B, D]."""
    return F.mse_loss(student_embedding, teacher_embedding)
