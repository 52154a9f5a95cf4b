"""Transfer of activation boundaries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import NonNegative, PositiveInt
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.fitnet import build_regressor
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


Shape = tuple[int, int, int]


class AB(Term):
    """Activation boundaries: before the main training, the student's neurons learn to be on where the teacher's are.

    Equation:   L = sum over stages l of  2^(l - L) · 3/1000 · 1/B · sum over B, C, H, W of  max(0, margin - y·r(P_s))²
                y = 1 where P_t > 0, else -1;  r = convolution (with bias) and batch norm, of FitNet's geometry; nothing
                where the maps have one shape already
    Shapes:     pre-activations P of the stages f1 … fL, [B, C, H, W], the i-th of the student with the i-th of the
                teacher, equally many. A student's map may be smaller than the teacher's only by half.
    Reduction:  sum over C, H, W, mean over the batch; the last stage counts 1, those before it 1/2, 1/4, …
    Schedule:   the initial stage of `initial_epochs` epochs trains the student up to its last exposed map, and r, with
                this loss alone: no cross-entropy, no decay of the rate. The main training has no such term.
    Trained:    r, in the initial stage.
    Weights:    CRD 1·ce + 1·ab, SSKD 0.1·ce + 0.9·kd + 1·ab. The weight of ab multiplies 0, so it counts for nothing.
    Departures: the authors' own CIFAR example takes 1×1 convolutions, compares maps behind batch norms (the student's has
                one of its own there, the teacher's are in training mode), and distils with KD alone afterwards, at T = 3
                without T². The tables of CRD and SSKD come from the benchmark's version, which this is. That version
                passes Wide ResNets' batch norms behind the stages twice in a step, so that their running statistics move
                by 0.19 of the way instead of 0.1, as here; gradients are the same.
    Source:     CRD benchmark's ABLoss and its initial training.
    """

    paper = (
        "Heo, Lee, Yun, Choi. Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons. "
        "AAAI 2019"
    )
    reads = "all stages' pre-activations"
    requires = ("equal_levels", "sides_within_reach", "preactivations")
    initial = True
    version = 1

    def __init__(self, context: TermContext, *, initial_epochs: PositiveInt = 30, margin: NonNegative = 1.0) -> None:
        super().__init__(context)
        self.set_initial_epochs(initial_epochs)
        ours, theirs = context.student.stages, context.teacher.stages
        if len(ours) != len(theirs):
            raise BadInput(
                f"ab pairs the stages one by one, and the student has {len(ours)}, the teacher {len(theirs)}"
            )
        self.margin = margin
        self.connectors = nn.ModuleList(build_connector(*pair) for pair in zip(ours, theirs, strict=True))

    def initial_loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum over the stages of what lies on the wrong side of the margin."""
        levels = zip(self.connectors, student.preactivations, teacher.preactivations, strict=True)
        losses = [ab_loss(connector(ours), theirs, self.margin) for connector, ours, theirs in levels]
        return torch.stack([loss * 0.003 * 2.0 ** (n + 1 - len(losses)) for n, loss in enumerate(losses)]).sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return 0."""
        return torch.zeros((), device=student.logits.device)


@in_float32
def ab_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distance of each value to the teacher's side of the boundary, summed over a map, mean over [B, C, H, W]'s B."""
    towards = torch.where(teacher > 0, student, -student)
    return F.relu(margin - towards).square().sum() / len(student)


def build_connector(source: Shape, target: Shape) -> nn.Module:
    """Convolution and batch norm from a map's shape to another's; nothing for equal shapes."""
    if source == target:
        return nn.Identity()
    if source[1] < target[1] and 2 * source[1] != target[1]:
        raise BadInput(
            f"ab can double the side of the student's map but no more: {source[1]} to {target[1]} is too far"
        )
    return build_regressor(source, target)[:2]
