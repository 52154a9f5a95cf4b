"""The context of a job, and how a job ends its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from filelock import Timeout

from kdbench.data.stream import DataSource
from kdbench.store.record import Failure, Kind, Record
from kdbench.store.store import Store
from kdbench.training.checkpoint import finish
from kdbench.training.environment import describe
from kdbench.training.loop import Callbacks
from kdbench.training.trainer import Trainer
from kdbench.training.weights import WeightFiles


Emit = Callable[..., None]


@dataclass
class JobResult:
    """How a job ended: the ids that another process is training, and whether it was asked to stop before its end."""

    busy: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class JobContext:
    """What a job works with: store, data and device of its worker, and what the parent process says about the job.

    ``emit(event, **fields)`` tells the parent. ``waited``: another process was training the same when the job first asked,
    so that a failure of that process counts, too. ``discard_weights``: ids of students whose weights nothing will read.
    """

    store: Store
    data: DataSource
    weights: WeightFiles
    device: torch.device
    emit: Emit
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    waited: bool = False
    discard_weights: frozenset[str] = frozenset()

    def callbacks(self, on_finish: Callable[[Trainer], None]) -> Callbacks:
        """The functions that the training loop calls."""
        return Callbacks(self._on_progress, self._on_epoch, on_finish, self.should_stop, self.checkpoint_seconds)

    def _on_progress(self, trainer: Trainer, share: float, speed: float) -> None:
        facts = {"id": trainer.record.id, "epoch": trainer.progress.epoch, **trainer.length}
        self.emit("under way", **facts, share=share, images_per_second=speed)

    def _on_epoch(self, trainer: Trainer, speed: float) -> None:
        row = trainer.progress.metrics[-1]
        facts = {"id": trainer.record.id, **trainer.length, "images_per_second": speed}
        self.emit("epoch", **facts, **{key: row.get(key) for key in ("epoch", "loss", "top1")})


@contextmanager
def locked(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Lock those records that no other process has locked, and yield them."""
    with ExitStack() as stack:
        mine = []
        for record in records:
            lock = record.lock()
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                continue
            mine.append(record)
        yield mine


def fail(record: Record, failure: Failure, ctx: JobContext) -> None:
    """Store a failure and report it."""
    record.fail(failure)
    ctx.emit("failed", id=record.id, reason=failure.reason)


@dataclass(frozen=True)
class RunFinisher:
    """Stores the result or the failure of each trainer that has ended.

    ``macs`` holds the multiply-accumulates of each, by id; ``samples`` are the fields of the result that describe images
    and labels under a scenario; ``finalize`` stores the teacher that learned with the student, and returns the fields of the
    result that describe it.
    """

    ctx: JobContext
    kind: Kind
    train_images: int
    test_images: int
    macs: dict[str, float]
    measure: Literal["classifier", "neighbours"] = "classifier"
    samples: dict[str, Any] = field(default_factory=dict)
    finalize: Callable[[Record], dict[str, Any]] | None = None

    def __call__(self, trainer: Trainer) -> None:
        """Store the failure or the result, and report it."""
        if trainer.failure is not None:
            fail(trainer.record, trainer.failure, self.ctx)
            return
        about = {"macs": self.macs[trainer.record.id], **describe(self.ctx.device)}
        facts: dict[str, Any] = {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "measure": self.measure,
            "parent_sha256": trainer.parent_sha256,
            **self.samples,
        }
        if self.finalize and trainer.reads_teacher:
            facts |= self.finalize(trainer.record)
        finish(trainer, self.kind, facts, about, keep_weights=trainer.record.id not in self.ctx.discard_weights)
        last = trainer.last()
        self.ctx.emit("finished", id=trainer.record.id, top1=last.top1 if last else None)
