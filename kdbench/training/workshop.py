"""What every job of a worker shares: its surroundings, and the claims on what it works at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from filelock import Timeout

from kdbench.data.stream import DataSource
from kdbench.store.record import Record
from kdbench.store.store import Store
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
