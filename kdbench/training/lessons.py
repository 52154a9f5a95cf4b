"""The batches of an epoch, each with what the teacher gives for it; where steps are replayed, several are made at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from kdbench.data.batch import Batch, Batches, Portion
from kdbench.models.outputs import Outputs
from kdbench.training.guard import mapped
from kdbench.training.replay import Replay
from kdbench.training.teacher import FrozenTeacher


class Lesson(NamedTuple):
    """A batch, the teacher's outputs for its images (None: nobody reads them), and for its transformed copies, by kind."""

    batch: Batch
    shown: Outputs | None = None
    copies: Mapping[str, Outputs] = {}

    @classmethod
    def of(cls, batch: Batch, teacher: FrozenTeacher | None) -> Lesson:
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
    teacher: FrozenTeacher | None,
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
    for number, chunk in enumerate(
        in_chunks(stream, at_once).epoch(epoch, first=first // at_once, **how), first // at_once
    ):
        asked = teacher if (number + 1) * at_once > teacher_start else None
        if asked and not asked.learns and len(chunk) == at_once * size:
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
