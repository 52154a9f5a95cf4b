"""Online distillation from an ensemble of branches (ONE)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveInt, PositiveNumber
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.ce import cross_entropy
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


BRANCHES = 3
EPSILON = 1e-7


class OnlineKD(Term):
    """ONE: three copies of the student's last stage learn together, and each from a gated sum of all three; no teacher.

    Equation:   z_1 = the student's logits,  z_2, z_3 = those of two further last stages on its second-to-last map F
                g = softmax( ReLU( BN( linear( mean over H, W of F ) ) ) ),  z_e = sum_i g_i · z_i
                p_i = softmax(z_i / T),  p_e = softmax(z_e / T) + 1e-7, without gradient
                L = sum_i CE(z_i, y) + CE(z_e, y) + w · T² · sum_i 1/B · sum_b sum over classes of p_e · log( p_e / p_i )
                w = exp( -5 · (1 - t / ramp_epochs)² ),  t = the finished epochs, at most `ramp_epochs`
    Shapes:     F [B, C, H, W], logits z [B, K], labels y [B], gate g [B, 3]. No teacher is needed.
    Reduction:  sum over classes and branches, mean over the batch.
    Trained:    two last stages with classifiers of the student's architecture, with weights and batch norms of their own,
                and the gate's linear layer and batch norm. What is tested and kept is branch 1, the student itself.
    Weights:    1, alone: the labels are in it, so `ce` stays out. SSKD's Table 5 quotes CRD's figure for ImageNet.
    Departures: the paper's loss has neither the ramp w nor 1e-7; the authors' code has both, with T = 3 and 80 epochs.
                How it was trained on ImageNet was not released. F is the second-to-last of the maps that the network
                exposes; with MobileNetV2 the branch so holds the last two of its stages.
    Numerics:   for a batch of one image the gate's batch norm uses its running statistics.
    Source:     the authors' cifar_one.py, ONE_ResNet and KLLoss.
    """

    paper = "Lan, Zhu, Gong. Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS 2018"
    reads = "labels, the student's logits and second-to-last feature map"
    needs_teacher = False
    requires = ("last_stage_again",)
    reads_epoch = True
    version = 1

    def __init__(
        self, context: TermContext, *, temperature: PositiveNumber = 3.0, ramp_epochs: PositiveInt = 80
    ) -> None:
        super().__init__(context)
        if context.branch is None:
            raise BadInput("online-kd trains further last stages of the student, and TermContext.branch makes none")
        self.temperature = temperature
        self.ramp_epochs = ramp_epochs
        self.branches = nn.ModuleList(context.branch() for _ in range(BRANCHES - 1))
        self.gate = nn.Linear(context.student.features[-2][0], BRANCHES)
        self.norm = nn.BatchNorm1d(BRANCHES)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the branches' and the ensemble's cross-entropy, and what the branches learn from the ensemble."""
        shared = student.features[-2]
        logits = torch.stack([student.logits, *(branch(shared) for branch in self.branches)])
        shares = self.gate_of(shared)
        ensemble = (shares.T.unsqueeze(2) * logits).sum(0)
        labels = [cross_entropy(each, batch.labels) for each in (*logits, ensemble)]
        return torch.stack(labels).sum() + self.ramp() * divergence(logits, ensemble, self.temperature)

    @in_float32
    def gate_of(self, shared: Tensor) -> Tensor:
        """Each branch's share of the ensemble, [B, 3], from the map [B, C, H, W]."""
        scores = self.gate(shared.mean((2, 3)))
        if self.training and len(scores) == 1:
            norm = self.norm
            scores = F.batch_norm(scores, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            scores = self.norm(scores)
        return F.relu(scores).softmax(1)

    def ramp(self) -> float:
        """The weight of what is learned from the ensemble, by the epoch alone."""
        done = min(max(self.epoch - 1, 0), self.ramp_epochs)
        return math.exp(-5 * (1 - done / self.ramp_epochs) ** 2)


@in_float32
def divergence(logits: Tensor, ensemble: Tensor, temperature: float) -> Tensor:
    """Sum over the branches of T² · KL(ensemble ‖ branch), mean over the batch: [3, B, K], [B, K] → scalar."""
    target = (ensemble.detach() / temperature).softmax(1) + EPSILON
    apart = target * (target.log() - (logits / temperature).log_softmax(2))
    return temperature**2 * apart.sum() / len(ensemble)
