"""Flow of the solution procedure."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import PositiveInt
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, pool_to_smaller
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


class FSP(Term):
    """FSP: before the main training, products of consecutive maps become the teacher's.

    Equation:   G_i[b] = 1/(H·W) · F_i[b]·F_{i+1}[b]ᵀ  [C_i, C_{i+1}]
                L = sum over i of  mean over B, C_i, C_{i+1} of ( G_i(student) - G_i(teacher) )²
    Shapes:     maps f0 … fL, [B, C, H, W], flattened to [B, C, H·W]; f0 is the stem. The larger of two consecutive maps
                is average-pooled to the smaller side first. Both networks have equally many, of the same channels.
    Reduction:  mean over all entries, sum over pairs of maps.
    Schedule:   the initial stage of `initial_epochs` epochs trains the student up to its last exposed map with this loss
                alone: no cross-entropy, no decay of the rate. The main training has no such term.
    Weights:    CRD 1·ce + 50·fsp. The weight of fsp multiplies 0, so it counts for nothing.
    Departures: none known; the benchmark multiplies by broadcasting, this with a matrix product: the same values.
    Source:     CRD benchmark's FSP and its initial training.
    """

    paper = (
        "Yim, Joo, Bae, Kim. A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer "
        "Learning. CVPR 2017"
    )
    reads = "all feature maps, the stem's, too"
    requires = ("equal_levels", "equal_channels")
    initial = True
    version = 1

    def __init__(self, context: TermContext, *, initial_epochs: PositiveInt = 30) -> None:
        super().__init__(context)
        self.set_initial_epochs(initial_epochs)
        ours, theirs = ([shape[0] for shape in net.features] for net in (context.student, context.teacher))
        if ours != theirs:
            raise BadInput(
                f"fsp needs equal channels in both networks, and the student has {ours}, the teacher {theirs}"
            )

    def initial_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum over consecutive maps of the mean squared difference of their products."""
        pairs = zip(flows(student.features), flows(teacher.features), strict=True)
        return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return 0."""
        return torch.zeros((), device=student.logits.device)


def flows(maps: list[Tensor]) -> list[Tensor]:
    """The products of each map with the next, [B, C_i, C_{i+1}]."""
    return [flow(*pool_to_smaller(lower, upper)) for lower, upper in itertools.pairwise(maps)]


@in_float32
def flow(lower: Tensor, upper: Tensor) -> Tensor:
    """Mean over positions of the products of two maps' channels; [B, C, H, W] and [B, D, H, W] to [B, C, D]."""
    return lower.flatten(2) @ upper.flatten(2).transpose(1, 2) / lower.shape[2:].numel()
