"""An epoch's lessons, and steps that are captured as a graph and replayed: one launch takes the place of some hundred.

A step of a small network is some hundred kernels, and a GPU is done with each before Python has launched the next. A graph
holds them all, on fixed memory and with all numbers as they were; to replay it costs the host one launch. The batch and what
the teacher gives for it are therefore copied to where the first of their kind were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from kdbench.data.batch import Batch, Batches, Portion
from kdbench.errors import message_of
from kdbench.models.outputs import Outputs, Shapes
from kdbench.training.environment import device_lost, out_of_memory
from kdbench.training.guard import mapped, tensors_of


Shown = TypeVar("Shown")

WARM_UP = 3
"""So many calls are eager first: they make the momentum, and cuDNN chooses its algorithms."""
TOLERANCE = 1e-2
"""The share of a tensor's largest change in a step by which a replayed step may differ: sums in another order do."""


def why_eager(device: torch.device) -> str:
    """Why steps on a device are not replayed; "" if they are."""
    return "" if hasattr(torch.get_device_module(device), "CUDAGraph") else f"{device} has no graphs"


class Captured(Generic[Shown]):
    """A function on fixed memory that is called, then captured, and from then on replayed.

    Where it asks the device for a value or binds memory anew, or where its first replay does not do what a call does, it is
    only called, after all; ``tell`` is told why. ``captures`` counts how often it was captured. Functions whose results are
    not read may share a ``pool`` of memory. ``settle`` waits until no other thread uses the device, before each capture.
    """

    def __init__(
        self,
        device: torch.device,
        tell: Callable[[str], None],
        pool: Any = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._device: Any = torch.get_device_module(device)
        self._tell = tell
        self._settle = settle
        self._pool = {"pool": pool} if pool is not None else {}
        self._key: Hashable = None
        self._calls = 0
        self._graph: Any = None
        self._result: Shown | None = None
        self._refused = False
        self.captures = 0

    def __call__(
        self,
        function: Callable[[], Shown],
        key: Hashable,
        state: Callable[[], list[Tensor]] = list,
        seed: Callable[[], None] = lambda: None,
    ) -> Shown:
        """What the function returns, in memory that the next call writes to again.

        key:   stands for whatever the function depends on beside the memory that it reads; a new one is captured anew
        state: the tensors that it changes
        seed:  seeds its random numbers, which are drawn anew in each replay
        """
        if key != self._key:
            self._key, self._graph = key, None
        self._calls += 1
        if not self._refused and self._graph is None and self._calls > WARM_UP:
            return self._capture(function, state, seed)
        seed()
        if self._graph is None:
            return function()
        self._graph.replay()
        return cast(Shown, self._result)

    @torch.no_grad()
    def _capture(
        self, function: Callable[[], Shown], state: Callable[[], list[Tensor]], seed: Callable[[], None]
    ) -> Shown:
        """Take the step, and capture and replay it from where it began. The replay counts if both did the same."""
        before = _copied(state())
        seed()
        with torch.enable_grad():
            called = function()
        tensors, after = state(), _copied(state())
        shown = _copied(called)
        _put_back(tensors, before)
        graph, reason = self._device.CUDAGraph(), ""
        self._settle()
        try:
            with self._device.graph(graph, capture_error_mode="thread_local", **self._pool), torch.enable_grad():
                result = function()
        except RuntimeError as error:
            if out_of_memory(error) or device_lost(error):
                raise
            reason = message_of(error)
        else:
            seed()
            graph.replay()
            if [*map(id, state())] != [*map(id, tensors)]:
                reason = "memory is bound anew in each"
            elif not (all(map(_alike, before, after, tensors)) and all(map(_alike, shown, shown, _tensors(result)))):
                reason = "the first replay gave other values"
        if reason:
            self._refused = True
            self._tell(reason)
            _put_back(state(), after)
            return called
        self._graph, self._result, self.captures = graph, result, self.captures + 1
        return result


def _tensors(shown: object) -> list[Tensor]:
    return [tensor for _, tensor in tensors_of("", shown)]


def _copied(shown: object) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(shown)]


def _put_back(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _alike(before: Tensor, called: Tensor, replayed: Tensor) -> bool:
    """Whether a replay gives what a call gives, but for sums in another order: as far as it came from ``before``."""
    called, size = called.double(), called.double() if before is called else called.double() - before
    return bool((called - replayed).abs().max() <= TOLERANCE * size.abs().max())


class FixedMemory(Generic[Shown]):
    """Tensors that keep their place. ``changes`` counts how often they had to move."""

    def __init__(self) -> None:
        self.changes = 0
        self._layout: list[Any] = []
        self._held: Any = None

    @torch.no_grad()
    def put(self, shown: Shown) -> Shown:
        """The same values where the first of their kind were."""
        tensors = _tensors(shown)
        layout = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        if layout != self._layout:
            self.changes += 1
            self._layout, self._held = layout, mapped(torch.clone, shown)
        elif tensors:
            torch._foreach_copy_(_tensors(self._held), tensors, non_blocking=True)
        return cast(Shown, self._held)


AT_ONCE, SHOWN_BYTES = 8, 2**29
"""A frozen teacher looks at so many batches at once, or at fewer where its outputs would take more memory."""


def batches_at_once(shapes: Shapes, batch: int) -> int:
    """How many batches a frozen teacher, whose outputs have these ``shapes``, looks at in one pass."""
    maps = sum(map(math.prod, (*shapes.features, *shapes.stages)))  # a pre-activation for each stage
    values = maps or shapes.embedding + shapes.logits  # which are small beside maps
    return max(1, min(AT_ONCE, SHOWN_BYTES // (4 * batch * values)))


class Replay:
    """The captured functions of trainers that train together, and the memory that these share.

    batch:   the size of those batches that are replayed; the short last one is not
    tell:    is told what is not replayed, and why
    at_once: the number of batches that are made in one go
    settle:  waits until no other thread uses the device; it may be replaced
    """

    def __init__(self, device: torch.device, batch: int, tell: Callable[[str], None], at_once: int = 1) -> None:
        self.device, self.batch, self.tell, self.at_once = device, batch, tell, at_once
        self.chunks: FixedMemory[Batch] = FixedMemory()
        self.lessons: FixedMemory[Any] = FixedMemory()
        self.settle: Callable[[], None] = lambda: None
        self.teacher: Captured[Any] = Captured(
            device, self._teller("the teacher's passes"), settle=lambda: self.settle()
        )
        self._pool = torch.get_device_module(device).graph_pool_handle()
        self._steps: dict[Hashable, Captured[bool]] = {}

    def step_of(self, trainer: Hashable, terms: str) -> Captured[bool]:
        """The step of a trainer in one of its stages."""
        if trainer not in self._steps:
            tell = self._teller(f"the steps of {terms}")
            self._steps[trainer] = Captured(self.device, tell, self._pool, lambda: self.settle())
        return self._steps[trainer]

    def _teller(self, what: str) -> Callable[[str], None]:
        return lambda reason: self.tell(f"{what} are launched one kernel after the other: {reason}")


class Guide(Protocol):
    """What looks at batches for the students: a teacher. ``learns``: it changes from batch to batch."""

    learns: bool

    def look(self, batch: Batch) -> tuple[Outputs, Mapping[str, Outputs]]:
        """The outputs for a batch and, by kind, for its transformed copies."""


class Lesson(NamedTuple):
    """A batch, the teacher's outputs for its images (None: nobody reads them), and for its transformed copies, by kind."""

    batch: Batch
    shown: Outputs | None = None
    copies: Mapping[str, Outputs] = {}

    @classmethod
    def of(cls, batch: Batch, teacher: Guide | None) -> Lesson:
        """The lesson that the teacher gives now."""
        return cls(batch, *teacher.look(batch)) if teacher else cls(batch)

    def part(self, start: int, size: int) -> Lesson:
        """The rows of ``size`` images, or as many as there are, from number ``start`` on, in the same memory."""
        images = len(self.batch)

        def rows(tensor: Tensor) -> Tensor:
            each = len(tensor) // images  # views have several rows for an image
            return tensor[each * start : each * (start + size)]

        return Lesson._make(mapped(rows, tuple(self)))


def lessons(
    stream: Batches,
    teacher: Guide | None,
    replay: Replay | None,
    *,
    epoch: int,
    first: int,
    teacher_start: int,
    transforms: Sequence[str],
    portion: Portion,
) -> Iterator[Lesson]:
    """The lessons of an epoch from batch number ``first`` on. The teacher is asked from number ``teacher_start`` on.

    With ``replay``, those with full batches are in its memory, and ``replay.at_once`` of them are augmented and shown to the
    teacher together. Which ones are together does not depend on where the epoch begins.
    """
    how: dict[str, Any] = {"with_teacher": teacher is not None, "transforms": transforms, "portion": portion}
    if replay is None:
        for number, batch in enumerate(stream.epoch(epoch, first=first, **how), first):
            yield Lesson.of(batch, teacher if number >= teacher_start else None)
        return
    size, at_once = replay.batch, replay.at_once
    begin = first // at_once
    for number, chunk in enumerate(in_chunks(stream, at_once).epoch(epoch, first=begin, **how), begin):
        asked = teacher if (number + 1) * at_once > teacher_start else None
        if asked and not asked.learns and len(chunk) == at_once * size and chunk.taught is None:
            chunk = replay.chunks.put(chunk)
            lesson: Lesson = replay.teacher(partial(Lesson.of, chunk, asked), replay.chunks.changes)
        else:
            lesson = Lesson.of(chunk, asked)
        for start in range(max(0, first - number * at_once) * size, len(chunk), size):
            part = lesson.part(start, size)
            yield replay.lessons.put(part) if len(part.batch) == size else part


def in_chunks(stream: Batches, batches: int) -> Batches:
    """The same stream with ``batches`` batches in a row as one. Raises AttributeError where its batches have no set size."""
    if batches == 1:
        return stream
    chunks: Any = copy(stream)
    chunks.batch *= batches
    return chunks  # type: ignore[no-any-return]
