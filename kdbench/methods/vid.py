"""Variational information distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveNumber
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, paired_stages, pool_to_smaller
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import LayerPair, Outputs


class VID(Term):
    """Variational information distillation: the student's maps predict the teacher's as a Gaussian's mean.

    Equation:   mu = three 1×1 convolutions of F_s with ReLU between, no bias;  var_c = softplus(rho_c) + epsilon
                L = sum over stages of  mean over B, C, H, W of  ½ · [ (mu - F_t)² / var_c + log var_c ]
    Shapes:     stages f1 … fL, [B, C, H, W]: the i-th of the student with the i-th of the teacher, up to the shorter
                network's last. The larger map of a pair is average-pooled to the smaller side.
    Reduction:  mean over all elements, sum over stages. It may be negative.
    Trained:    the convolutions (C_s → C_t → C_t → C_t) and one rho per teacher channel, which starts at a variance of
                `initial_variance`. Weight decay acts on both, as in the reference.
    Weights:    CRD, SSKD, SemCKD 1.
    Departures: the constant log(2·pi)/2 of the Gaussian is left out. The reference's log(1 + exp(rho)) overflows for
                rho > 88; softplus gives the same values without.
    Source:     CRD benchmark's VIDLoss, after the authors' code.
    """

    paper = "Ahn, Hu, Damianou, Lawrence, Dai. Variational Information Distillation for Knowledge Transfer. CVPR 2019"
    reads = "all stages' feature maps"
    requires = ("feature_maps", "epsilon_below_variance")
    version = 1

    def __init__(
        self, context: TermContext, *, initial_variance: PositiveNumber = 5.0, epsilon: PositiveNumber = 1e-5
    ) -> None:
        super().__init__(context)
        if epsilon >= initial_variance:
            raise BadInput(f"vid: epsilon must be below initial_variance, not {epsilon} and {initial_variance}")
        pairs = list(zip(context.student.stages, context.teacher.stages, strict=False))
        start = initial_variance - epsilon
        rho = start + math.log(-math.expm1(-start))
        self.epsilon = epsilon
        self.regressors = nn.ModuleList(build_regressor(source[0], target[0]) for source, target in pairs)
        self.rhos = nn.ParameterList(nn.Parameter(torch.full((target[0],), rho)) for _, target in pairs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum over paired stages of the negative log-likelihood."""
        losses = []
        for (source, target), regressor, rho in zip(
            paired_stages(student, teacher), self.regressors, self.rhos, strict=True
        ):
            source, target = pool_to_smaller(source, target)
            losses.append(vid_loss(regressor(source), target, rho, self.epsilon))
        return torch.stack(losses).sum()

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the paired stages; the predicted mean is compared."""
        pairs = []
        for (source, target), regressor in zip(paired_stages(student, teacher), self.regressors, strict=True):
            smaller, aim = pool_to_smaller(source, target)
            pairs.append(LayerPair(source, target, compared=(regressor(smaller), aim)))
        return pairs


@in_float32
def vid_loss(mean: Tensor, target: Tensor, rho: Tensor, epsilon: float) -> Tensor:
    """Gaussian negative log-likelihood without its constant; maps [B, C, H, W], rho [C]."""
    variance = F.softplus(rho) + epsilon
    squared_error = (mean - target).square().mean((0, 2, 3))
    return 0.5 * (squared_error / variance + variance.log()).mean()


def build_regressor(source: int, target: int) -> nn.Sequential:
    """Three 1×1 convolutions without bias from `source` to `target` channels, with ReLU between."""
    return nn.Sequential(
        nn.Conv2d(source, target, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target, target, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target, target, kernel_size=1, bias=False),
    )
