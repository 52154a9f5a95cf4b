"""The outputs of every network, their shapes, and parameter and operation counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """Everything that a distillation method may read from a network.

    logits:         [B, K]
    embedding:      [B, D], the input of the classifier
    features:       the stem's map f0, then one map per stage f1 … fL, each [B, C, H, W], as the authors' networks expose them
    preactivations: for f1 … fL the map before the stage's last activation (the following batch norm's output in
                    pre-activation networks; the map itself where a stage ends without activation)
    """

    logits: Tensor
    embedding: Tensor
    features: list[Tensor]
    preactivations: list[Tensor]

    @property
    def stages(self) -> list[Tensor]:
        """f1 … fL: the feature maps without the stem."""
        return self.features[1:]


class LayerPair(NamedTuple):
    """A feature map of the student and the teacher's map that a loss term pairs it with.

    student:    [B, …], as the network gives it
    teacher:    [B, …], likewise
    weight:     [B], the weight of each image's pair; None for 1
    compared:   both maps as the term compares them (projected, pooled), each [B, …]; None if it compares the maps
                themselves
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor | None = None
    compared: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Shapes:
    """The sizes of one network's outputs for one image: classes, embedding width, and [C, H, W] of each of f0 … fL."""

    logits: int
    embedding: int
    features: tuple[tuple[int, int, int], ...]

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        return self.features[1:]

    @classmethod
    def of(cls, outputs: Outputs) -> Shapes:
        """Read the sizes from the outputs of one forward pass."""
        maps = tuple((f.shape[1], f.shape[2], f.shape[3]) for f in outputs.features)
        return cls(outputs.logits.shape[1], outputs.embedding.shape[1], maps)


def measure_shapes(net: nn.Module, size: int) -> Shapes:
    """The sizes of the network's outputs for one image of ``size`` × ``size`` pixels."""
    return Shapes.of(probe(net, size))


def probe(net: nn.Module, size: int) -> Outputs:
    """The network's outputs for one black image [1, 3, size, size], in eval mode and without gradients.

    The modes and buffers of its modules are restored. cuDNN tries no algorithms for a batch of one that will not come again.
    """
    weight = next(net.parameters())
    modes = {module: module.training for module in net.modules()}
    net.eval()
    cudnn = torch.backends.cudnn
    tries, cudnn.benchmark = cudnn.benchmark, False
    try:
        with torch.no_grad():
            outputs: Outputs = net(torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device))
    finally:
        cudnn.benchmark = tries
        for module, mode in modes.items():
            module.training = mode
    return outputs


def count_parameters(net: nn.Module) -> int:
    """The number of parameters, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in net.parameters())


class Operations(NamedTuple):
    """What convolutions and linear layers do for one image: multiply-accumulates, elements that they give, layers."""

    macs: int
    activations: int
    layers: int


def count_macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of ``size`` × ``size`` pixels."""
    return count_operations(net, size).macs


def count_operations(net: nn.Module, size: int) -> Operations:
    """What convolutions and linear layers do for one image of ``size`` × ``size`` pixels.

    Biases, batch norms, activations and pooling are not counted, as is the field's habit; nor is what attention
    computes, as no layer of its own does it.
    """
    counts: list[tuple[int, int]] = []

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        counts.append((output.numel() * weight[0].numel(), output.numel()))

    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        probe(net, size)
    finally:
        for hook in hooks:
            hook.remove()
    return Operations(sum(macs for macs, _ in counts), sum(elements for _, elements in counts), len(layers))
