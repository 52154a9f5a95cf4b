"""What all jobs of a worker share, and how a job ends its records."""

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
    """What became of a job's records, by id."""

    busy: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class WorkerContext:
    """What every job of a worker needs. ``emit(event, **fields)`` tells the parent process."""

    store: Store
    data: DataSource
    weights: WeightFiles
    device: torch.device
    emit: Emit
    stopped: Callable[[], bool]
    checkpoint_seconds: float

    def callbacks(self, ended: Callable[[Trainer], None]) -> Callbacks:
        """The loop's view of this worker."""
        return Callbacks(self._on_progress, self._on_epoch, ended, self.stopped, self.checkpoint_seconds)

    def _on_progress(self, trainer: Trainer, share: float, speed: float) -> None:
        facts = {"id": trainer.record.id, "epoch": trainer.progress.epoch, **trainer.length}
        self.emit("under way", **facts, share=share, images_per_second=speed)

    def _on_epoch(self, trainer: Trainer, speed: float) -> None:
        row = trainer.progress.metrics[-1]
        facts = {"id": trainer.record.id, **trainer.length, "images_per_second": speed}
        self.emit("epoch", **facts, **{key: row.get(key) for key in ("epoch", "loss", "top1")})


@contextmanager
def locked(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Hold the locks of those records that no other process holds."""
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


def fail(record: Record, failure: Failure, ctx: WorkerContext) -> None:
    """Store a failure and tell of it."""
    record.fail(failure)
    ctx.emit("failed", id=record.id, reason=failure.reason)


@dataclass(frozen=True)
class RunFinisher:
    """Stores how each trainer of a job ended.

    ``macs`` holds the multiply-accumulates of each, by id; ``before`` is the hash of the weights on which a stage is made,
    ``samples`` what the results say of the images and labels under a scenario; ``leave`` keeps in a record what the teacher
    has become, and gives the facts of it; ``spare`` are the ids of runs whose weights are not kept.
    """

    ctx: WorkerContext
    kind: Kind
    train_images: int
    test_images: int
    macs: dict[str, float]
    measure: Literal["classifier", "neighbours"] = "classifier"
    before: str | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    finalize: Callable[[Record], dict[str, Any]] | None = None
    spare: frozenset[str] = frozenset()

    def __call__(self, trainer: Trainer) -> None:
        """Store the failure or the result, and tell of it."""
        if trainer.failure is not None:
            fail(trainer.record, trainer.failure, self.ctx)
            return
        about = {"macs": self.macs[trainer.record.id], **describe(self.ctx.device)}
        facts: dict[str, Any] = {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "measure": self.measure,
            "parent_sha256": self.before,
            **self.samples,
        }
        if self.finalize and trainer.reads_teacher:
            facts |= self.finalize(trainer.record)
        finish(trainer, self.kind, facts, about, keep_weights=trainer.record.id not in self.spare)
        last = trainer.last()
        self.ctx.emit("finished", id=trainer.record.id, top1=last.top1 if last else None)
