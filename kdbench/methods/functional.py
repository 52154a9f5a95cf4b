"""What several terms share: precision, pairing of stages, pooling, normalisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import BadInput
from kdbench.methods.term import TermContext
from kdbench.models.outputs import Outputs


P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss with autocast off and its half-precision tensors widened to float32.

    Entries of a Gram matrix of raw maps reach 2e7, and an epsilon of 1e-12 is zero in half precision.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [*args, *kwargs.values()]
        device = next(value.device.type for value in given if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            wide = [_widen(value) for value in args]
            return cast(R, cast(Any, function)(*wide, **{key: _widen(value) for key, value in kwargs.items()}))

    return wrapped


@in_float32
def project(layer: nn.Module, rows: Tensor) -> Tensor:
    """What a layer gives for rows, in float32."""
    return cast(Tensor, layer(rows))


def _widen(value: object) -> object:
    narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return cast(Tensor, value).float() if narrow else value


def check_equal_embeddings(term: str, context: TermContext) -> None:
    """Refuse a pair of networks whose embeddings differ in width. Raises BadInput."""
    ours, theirs = context.student.embedding, context.teacher.embedding
    if ours != theirs:
        raise BadInput(
            f"{term} compares the embeddings themselves, and the student's has {ours} values, the teacher's {theirs}. "
            "Give both a node embedding: strategy sequential or simultaneous, under protocol ega or "
            "{base: …, node_embedding: 256}"
        )


def paired_stages(student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Stage i of the student with stage i of the teacher, as far as the shorter network goes; the stem is left out."""
    return zip(student.stages, teacher.stages, strict=False)


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] to the other's height and width."""
    if student.shape[2] > teacher.shape[2]:
        return pool_like(student, teacher), teacher
    if student.shape[2] < teacher.shape[2]:
        return student, pool_like(teacher, student)
    return student, teacher


def pool_like(feature_map: Tensor, other: Tensor) -> Tensor:
    """Average-pool a map [B, C, H, W] to the height and width of another."""
    return F.adaptive_avg_pool2d(feature_map, (other.shape[2], other.shape[3]))


def unit_rows(rows: Tensor, epsilon: float) -> Tensor:
    """Scale each row of [N, D] to length 1. A row shorter than epsilon becomes 0 and passes no gradient back.

    Clamping the length instead would keep the value finite but hand such a row a gradient of 1/epsilon.
    """
    squared = rows.square().sum(1, keepdim=True)
    alive = squared > epsilon**2
    inverse = torch.where(alive, squared, 1.0).rsqrt()
    return rows * torch.where(alive, inverse, 0.0)
