"""The inputs that runs and terms share, and checks that no term changes them for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from kdbench.data.batch import UNDIVIDED, AugmentedViews, Batch, Batches, Portion
from kdbench.data.views import interleave_views
from kdbench.errors import BadInput
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs


WHOLE, SAMPLE = 2**18, 2**10
"""Where version counters do not tell, tensors of up to WHOLE values are compared whole, larger ones by about SAMPLE."""


class Watch:
    """Notices a write into tensors that others read, too.

    In-place operations raise a tensor's version counter, which costs nothing to read. With ``values``, which foreign code
    calls for, values are compared as well: writes through ``.data`` or ``.numpy()`` raise no counter. Of large tensors they
    are evenly spaced ones from number ``start`` on; successive starts reach all of them in the end.
    """

    def __init__(self, *, values: bool, start: int) -> None:
        self.values, self.start = values, start
        self.watched: list[tuple[str, Tensor, tuple[int, int], Tensor | None]] = []

    def add(self, name: str, shown: object) -> None:
        """Watch all tensors of what is shown under this name, as they are now."""
        for path, tensor in tensors_of(name, shown):
            sample = self._sample(tensor).clone() if self.values else None
            self.watched.append((path, tensor, _mark(tensor), sample))

    def check(self, culprit: str) -> None:
        """Raise BadInput, which names the culprit, where a tensor is not what it was."""
        changed = [path for path, tensor, mark, _ in self.watched if mark != _mark(tensor)] or [
            path
            for path, tensor, _, sample in self.watched
            if sample is not None and not torch.equal(sample, self._sample(tensor))
        ]
        if changed:
            raise BadInput(
                f"{culprit} writes into {changed[0]}, which others read, too: it must leave what it is shown as it is. "
                "Let it work on a copy (.clone()), without in-place operations"
            )

    def _sample(self, tensor: Tensor) -> Tensor:
        """Some of the values, as integers, among which nan equals itself."""
        tensor = tensor.detach()
        dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
        memory = tensor if dense else tensor.reshape(-1)
        step = 1 if tensor.numel() <= WHOLE else tensor.numel() // SAMPLE
        first = self.start % step
        count = -(-(tensor.numel() - first) // step)
        return memory.as_strided((count,), (step,), memory.storage_offset() + first).view(_INTEGERS[tensor.itemsize])


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _mark(tensor: Tensor) -> tuple[int, int]:
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()


def tensors_of(name: str, shown: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors of what is shown, each with its path."""
    if isinstance(shown, Tensor):
        yield name, shown
    elif isinstance(shown, Outputs):
        for field, value in zip(shown._fields, shown, strict=True):
            yield from tensors_of(f"{name}.{field}", value)
    elif isinstance(shown, Sequence):
        for index, value in enumerate(shown):
            yield from tensors_of(f"{name}[{index}]", value)
    elif isinstance(shown, Mapping):
        for key, value in shown.items():
            yield from tensors_of(f"{name}['{key}']", value)
    elif isinstance(shown, Batch | AugmentedViews):
        for attribute in fields(shown):
            yield from tensors_of(f"{name}.{attribute.name}", getattr(shown, attribute.name))


Shown = TypeVar("Shown")


def mapped(change: Callable[[Tensor], Tensor], shown: Shown) -> Shown:
    """The same, with each tensor changed, in lists and mappings of their own."""
    copy: Any = shown
    if isinstance(shown, Tensor):
        copy = change(shown)
    elif isinstance(shown, Outputs):
        copy = _mapped(change, shown)
    elif isinstance(shown, tuple):
        copy = tuple(mapped(change, value) for value in shown)
    elif isinstance(shown, Mapping):
        copy = MappingProxyType({key: mapped(change, value) for key, value in shown.items()})
    elif isinstance(shown, Batch | AugmentedViews):
        copy = type(shown)(**{field.name: mapped(change, getattr(shown, field.name)) for field in fields(shown)})
    return cast(Shown, copy)


def aliased(shown: Shown) -> Shown:
    """The same memory in tensors and lists of their own: what is assigned to these is not seen by others."""
    return mapped(Tensor.detach, shown)


def relisted(outputs: Outputs) -> Outputs:
    """The same tensors, with lists of their own: what is appended to these is not seen by others."""
    if type(outputs) is not Outputs:  # it is gathered from several devices and makes a list whenever one is read
        return outputs
    return outputs._replace(features=[*outputs.features], preactivations=[*outputs.preactivations])


def interleave_outputs(images: Outputs, copies: Outputs) -> Outputs:
    """What a network gives for images, each followed by what it gives for its copies."""
    return _mapped(interleave_views, images, copies)


def rows_of(outputs: Outputs, rows: slice) -> Outputs:
    """What a network gives for some of the images."""
    return _mapped(lambda tensor: tensor[rows], outputs)


def _mapped(change: Callable[..., Tensor], *outputs: Outputs) -> Outputs:
    """Apply a function to each tensor, or to those in the same place of several outputs."""

    def change_field(*values: Any) -> Any:
        return change(*values) if isinstance(values[0], Tensor) else list(map(change, *values))

    return Outputs(*map(change_field, *outputs))


class ReplayedStream:
    """The batches of a stream, without the data set that they are made of."""

    def __init__(self, stream: Batches) -> None:
        self._stream = stream

    def __len__(self) -> int:
        """Images per epoch."""
        return len(self._stream)

    def epoch(
        self,
        epoch: int,
        *,
        with_teacher: bool = True,
        transforms: Sequence[str] = (),
        first: int = 0,
        portion: Portion = UNDIVIDED,
    ) -> Iterator[Batch]:
        """The batches of an epoch."""
        return self._stream.epoch(epoch, with_teacher=with_teacher, transforms=transforms, first=first, portion=portion)


def plugged_in(modules: nn.Module) -> bool:
    """Whether code that is neither kdbench's nor torch's is among the modules."""
    return any(type(module).__module__.partition(".")[0] not in ("kdbench", "torch") for module in modules.modules())


def one_transform(terms: Iterable[Term]) -> str:
    """The kind of copies that the terms look at, or "". Raises BadInput where two terms want different ones."""
    kinds = sorted({term.transforms for term in terms if term.transforms})
    if len(kinds) > 1:
        raise BadInput(f"the terms of a run must look at one kind of copies, not at {' and '.join(kinds)}")
    return kinds[0] if kinds else ""
