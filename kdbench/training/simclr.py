"""SimCLR's loss (Chen et al., ICML 2020), with which a teacher is trained where there are no labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Setting, Term
from kdbench.models.outputs import Outputs


class NTXent(Term):
    """Normalised temperature-scaled cross-entropy: each view of an image must find the other among all views of the batch.

    Equation:   z = g(e) / |g(e)|,  g = Linear(D, D), ReLU, Linear(D, projection)
                L = mean over the 2B views i of  -log( exp(z_i·z_j / T) / sum over k ≠ i of exp(z_i·z_k / T) ),
                j the other view of the same image.
    Shapes:     embeddings e [2B, D], all first views, then all second views in the same order.
    Source:     Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual Representations.
                ICML 2020, eq. 1.
    """

    reads = "embedding"
    needs_teacher = False

    def __init__(self, setting: Setting, *, temperature: float = 0.5, projection: int = 128) -> None:
        super().__init__(setting)
        width = setting.student.embedding
        self.temperature = temperature
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the loss of the batch's two halves against each other."""
        return nt_xent(self.project(student.embedding), self.temperature)


@in_float32
def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent of [2B, P] projections, whose row i and row i + B are the two views of one image."""
    count = projections.shape[0]
    units = F.normalize(projections, dim=1)
    itself = torch.eye(count, dtype=torch.bool, device=units.device)
    similarity = (units @ units.T / temperature).masked_fill(itself, -torch.inf)
    other = torch.arange(count, device=units.device).roll(count // 2)
    return F.cross_entropy(similarity, other)
