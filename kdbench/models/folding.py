"""Networks that only infer, made cheaper: batch normalisation becomes part of the convolution before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from kdbench.errors import KdbenchError
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs


TOLERANCE = 1e-3
"""How far the outputs may move, as a part of the largest value of each tensor. Rounding moves them by about 1e-5."""


def fold_batch_norm(network: Backbone, side: int) -> Backbone:
    """A copy for inference in which each batch normalisation that alone reads a convolution's output is part of it.

    Pairs are found in a forward pass of random images of ``side`` pixels. The copy's outputs differ by rounding alone.
    Raises KdbenchError where they differ by more: the network reads a layer's weights elsewhere.
    """
    copy = deepcopy(network).eval().requires_grad_(False)
    first = next(network.parameters())
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    expected, pairs = _observe(copy, images)
    names = {module: name for name, module in copy.named_modules()}
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        copy.set_submodule(names[norm], nn.Identity())
    copy.requires_grad_(False)
    with torch.no_grad():
        outputs: Outputs = copy(images)
    for one, other in zip(_tensors(outputs), _tensors(expected), strict=True):
        if not (one - other).abs().max() <= TOLERANCE * other.abs().max():
            raise KdbenchError(
                f"{type(network).__name__}: its outputs change where batch normalisation is folded into the convolution "
                "before it: it uses these layers' weights elsewhere, too. Leave teacher_inference out for this teacher"
            )
    return copy


@torch.no_grad()
def _observe(network: Backbone, images: Tensor) -> tuple[Outputs, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The outputs for images, and each convolution whose output a batch normalisation alone reads, with that."""
    uses = _Uses()
    convolved: dict[int, nn.Conv2d] = {}
    normalised: list[tuple[Tensor, nn.BatchNorm2d]] = []

    def after(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        convolved[id(output)] = module

    def before(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        normalised.append((inputs[0], module))

    hooks: list[RemovableHandle] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before))
    try:
        with uses:
            outputs: Outputs = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    shown = set(map(id, _tensors(outputs)))
    return outputs, [
        (convolved[id(x)], norm)
        for x, norm in normalised
        if id(x) in convolved and uses.count[id(x)] == 1 and id(x) not in shown
    ]


class _Uses(TorchFunctionMode):
    """Counts, by id, the operations that make tensors of a tensor. All are kept, so that none takes over another's id."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) for each in tree_leaves(made)):
            read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            self.count.update(map(id, read))
            self.kept += read
        return made


def _tensors(outputs: Outputs) -> Sequence[Tensor]:
    return outputs.logits, outputs.embedding, *outputs.features, *outputs.preactivations
