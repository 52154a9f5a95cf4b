"""Tensors as files hold them: shapes now, values when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


SIZES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of one value, by torch's name of the type."""


@dataclass(eq=False)
class Storage:
    """Values of one type in a row. ``read`` gives their bytes; ``length`` is how many bytes they are."""

    dtype: str
    length: int
    read: Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor: a strided view of a storage, strides and ``offset`` in values.

    Without a storage it is one that no plain network has: sparse, quantised, or without values.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None

    @property
    def count(self) -> int:
        """How many values it has."""
        total = 1
        for side in self.shape:
            total *= side
        return total


def stored(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Stored:
    """A view of a storage. Raises ValueError where it reaches beyond it."""
    if len(shape) != len(stride) or not all(map(_sensible, (shape, stride, (offset,)))):
        raise ValueError("no tensor has this shape")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if all(shape) and last >= storage.length // SIZES[storage.dtype]:
        raise ValueError("a tensor reaches beyond its storage")
    return Stored(shape, stride, offset, storage)


def contiguous(storage: Storage, shape: tuple[int, ...], *, columns: bool = False) -> Stored:
    """A tensor that is its whole storage, row by row, or column by column. Raises ValueError where it is larger."""
    if not _sensible(shape):
        raise ValueError("no tensor has this shape")
    stride, step = [], 1
    for side in shape if columns else reversed(shape):
        stride.append(step)
        step *= side
    return stored(storage, 0, shape, tuple(stride if columns else reversed(stride)))


def _sensible(numbers: tuple[int, ...]) -> bool:
    return len(numbers) <= 64 and all(type(number) is int and 0 <= number < 2**62 for number in numbers)


def printable(name: str) -> str:
    """A name from a file as it can be shown: at most 200 letters, no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:200])
