"""What a network gives for one image."""

from __future__ import annotations

import torch
from torch import nn

from kdbench.models.outputs import Outputs, Shapes


def measure_shapes(net: nn.Module, size: int) -> Shapes:
    """The sizes of the network's outputs for one image of ``size`` × ``size`` pixels."""
    return Shapes.of(probe(net, size))


def probe(net: nn.Module, size: int) -> Outputs:
    """The network's outputs for one black image [1, 3, size, size], in eval mode and without gradients.

    The modes of its modules and its buffers are afterwards what they were before.
    """
    weight = next(net.parameters())
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            outputs: Outputs = net(torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return outputs
