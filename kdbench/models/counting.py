"""The size and the cost of a network."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.shapes import probe


def count_parameters(net: nn.Module) -> int:
    """The number of parameters, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, size: int = 32) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of ``size`` × ``size`` pixels.

    Biases, batch norms, activations and pooling are not counted, as is the field's habit; nor is what attention
    computes, as no layer of its own does it.
    """
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        counts.append(output.numel() * weight[0].numel())

    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        probe(net, size)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)
