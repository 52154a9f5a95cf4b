"""Neuron selectivity transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.functional import in_float32, paired_stages, pool_to_smaller, unit_rows
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs


class NeuronSelectivity(Term):
    """Neuron selectivity transfer: the student's channels are distributed over the image as the teacher's are.

    Equation:   x_c = channel c of a map, flattened over H and W, scaled to length 1
                k(X, Y) = mean over b, c, c' of ( x_c · y_c' )²
                L = sum over stages of  k(T, T) + k(S, S) - 2·k(S, T): the squared maximum mean discrepancy
    Shapes:     stages f1 … fL, [B, C, H, W]: the i-th of the student with the i-th of the teacher, up to the shorter
                network's last. The larger map of a pair is average-pooled to the smaller side. Channel counts are free.
    Reduction:  mean over batch and pairs of channels, sum over stages.
    Weights:    CRD 50.
    Departures: none in value: the polynomial kernel of the paper with d = 2 and c = 0. The inner products of all
                channels are one matrix product per image; the reference forms C · C' · H · W products per image.
    Numerics:   an all-zero channel is 0 and gets no gradient.
    Source:     CRD benchmark's NSTLoss.
    """

    paper = "Huang, Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. arXiv:1707.01219, 2017"
    reads = "all stages' feature maps"
    requires = ("feature_maps",)
    version = 1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum over paired stages."""
        return torch.stack([nst_loss(s, t) for s, t in paired_stages(student, teacher)]).sum()


@in_float32
def nst_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of two maps [B, C, H, W]; the larger one is pooled."""
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    s, t = unit_channels(student_map), unit_channels(teacher_map)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared inner product of the channels of [B, C, H·W] with those of [B, C', H·W]."""
    return torch.bmm(x, y.transpose(1, 2)).square().mean()


def unit_channels(feature_map: Tensor) -> Tensor:
    """Each channel of [B, C, H, W] as a vector of length 1: [B, C, H·W]."""
    channels = feature_map.flatten(2)
    return unit_rows(channels.flatten(0, 1), epsilon=1e-6).view_as(channels)
