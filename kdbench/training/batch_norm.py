"""Batch norm by parts of a batch, on one device or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kdbench.training.ranks import Ranks


class BatchNormByParts(TorchFunctionMode):
    """While it is entered, each batch norm in training normalises every part of a batch by statistics of its own.

    parts:    the number of parts of the whole batch, images in a row; running statistics are those of the first
    portions: the number of devices that have a portion of the batch each; where they are more than the parts, those that
              share a part add up their statistics

    It changes no module, so it works on any network whose layers call torch's ``batch_norm``.
    """

    def __init__(self, parts: int, portions: int, ranks: Ranks) -> None:
        super().__init__()
        self.parts, self.portions, self.ranks = parts, portions, ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._normalise(*args, **kwargs)
        return func(*args, **kwargs)

    def _normalise(
        self,
        images: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        running = (running_mean, running_var)
        if not training:
            return F.batch_norm(images, *running, weight, bias, False, momentum, eps)
        if self.parts < self.portions:
            return self._shared(images, running, weight, bias, momentum, eps)
        own = self.parts // self.portions
        parts = images.tensor_split(max(1, min(own, len(images) // 2)))
        normalised = []
        for part in parts:
            normalised.append(F.batch_norm(part, *running, weight, bias, True, momentum, eps))
            running = (None, None)
        return torch.cat(normalised)

    def _shared(
        self,
        images: Tensor,
        running: tuple[Tensor | None, Tensor | None],
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        group, devices = self.ranks.group(self.parts), self.portions // self.parts
        own = torch.stack(torch.var_mean(_wide(images.detach()), _all_but_channels(images), correction=0))
        variances, means = self.ranks.collect(own[None], devices, group).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        count = devices * images.numel() // images.shape[1]
        for kept, value in zip(running, (mean, var * (count / (count - 1))), strict=True):
            if kept is not None:
                kept.lerp_(value.to(kept.dtype), momentum)
        total = partial(self.ranks.total, group=group)
        shared: Tensor = _SharedNorm.apply(images, weight, bias, mean, var, eps, total, count)  # type: ignore[no-untyped-call]
        return shared


def batch_norm_by_parts(parts: int, portions: int, ranks: Ranks) -> Any:
    """What a forward pass is made in; nothing where torch's batch norm does it."""
    return nullcontext() if parts == portions == 1 else BatchNormByParts(parts, portions, ranks)


class _SharedNorm(torch.autograd.Function):
    """Batch norm of images [B / n, C, …] by the statistics of all n devices of a group; torch has it on GPUs alone."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
        total: Callable[[Tensor], Tensor], count: int
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(images, weight, mean, (var + eps).rsqrt())
        ctx.total, ctx.count, ctx.has_bias = total, count, bias is not None
        return F.batch_norm(images, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale = ctx.saved_tensors
        gradient, dims = _wide(gradients[0]), _all_but_channels(images)
        mean, scale = _per_channel(mean, images), _per_channel(scale, images)
        units = (_wide(images) - mean) * scale
        of_bias, of_weight = gradient.sum(dims), (gradient * units).sum(dims)
        shares = (ctx.total(torch.stack([of_bias, of_weight])) / ctx.count).unbind()
        shift, slope = (_per_channel(share, images) for share in shares)
        of_images = (gradient - shift - units * slope) * scale
        if weight is not None:
            of_images = of_images * _per_channel(weight, images)
        return (
            of_images.to(images.dtype),
            None if weight is None else of_weight,
            of_bias if ctx.has_bias else None,
            *(None,) * 5,
        )


def _all_but_channels(images: Tensor) -> list[int]:
    return [dim for dim in range(images.dim()) if dim != 1]


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.itemsize < 4 else values


def _per_channel(values: Tensor, images: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (images.dim() - 2))
