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
from kdbench.training.learner import Learner
from kdbench.training.loop import Hooks
from kdbench.training.weights import WeightFiles


Emit = Callable[..., None]


@dataclass
class Outcome:
    """What became of a job's records, by id."""

    busy: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Workshop:
    """What every job of a worker needs. ``emit(event, **fields)`` tells the parent process."""

    store: Store
    data: DataSource
    weights: WeightFiles
    device: torch.device
    emit: Emit
    stopped: Callable[[], bool]
    checkpoint_seconds: float

    def hooks(self, ended: Callable[[Learner], None]) -> Hooks:
        """The loop's view of this worker."""
        return Hooks(self._under_way, self._epoch_done, ended, self.stopped, self.checkpoint_seconds)

    def _under_way(self, learner: Learner, share: float, speed: float) -> None:
        facts = {"id": learner.record.id, "epoch": learner.progress.epoch, **learner.length}
        self.emit("under way", **facts, share=share, images_per_second=speed)

    def _epoch_done(self, learner: Learner, speed: float) -> None:
        row = learner.progress.metrics[-1]
        facts = {"id": learner.record.id, **learner.length, "images_per_second": speed}
        self.emit("epoch", **facts, **{key: row.get(key) for key in ("epoch", "loss", "top1")})


@contextmanager
def claimed(records: Sequence[Record]) -> Iterator[list[Record]]:
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


def fail(record: Record, failure: Failure, shop: Workshop) -> None:
    """Store a failure and tell of it."""
    record.fail(failure)
    shop.emit("failed", id=record.id, reason=failure.reason)


@dataclass(frozen=True)
class Conclusion:
    """Stores how each learner of a job ended.

    ``macs`` holds the multiply-accumulates of each, by id; ``before`` is the hash of the weights on which a stage is made,
    ``samples`` what the results say of the images and labels under a scenario; ``leave`` keeps in a record what the teacher
    has become, and gives the facts of it; ``spare`` are the ids of runs whose weights are not kept.
    """

    shop: Workshop
    kind: Kind
    train_images: int
    test_images: int
    macs: dict[str, float]
    measure: Literal["classifier", "neighbours"] = "classifier"
    before: str | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    leave: Callable[[Record], dict[str, Any]] | None = None
    spare: frozenset[str] = frozenset()

    def __call__(self, learner: Learner) -> None:
        """Store the failure or the result, and tell of it."""
        if learner.failure is not None:
            fail(learner.record, learner.failure, self.shop)
            return
        about = {"macs": self.macs[learner.record.id], **describe(self.shop.device)}
        facts: dict[str, Any] = {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "measure": self.measure,
            "parent_sha256": self.before,
            **self.samples,
        }
        if self.leave and learner.reads_teacher:
            facts |= self.leave(learner.record)
        finish(learner, self.kind, facts, about, keep_weights=learner.record.id not in self.spare)
        last = learner.last()
        self.shop.emit("finished", id=learner.record.id, top1=last.top1 if last else None)
