"""How each learner of a job ended: what is stored, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.store.record import Failure, Kind, Record
from kdbench.training.checkpoint import finish
from kdbench.training.environment import describe
from kdbench.training.learner import Learner
from kdbench.training.workshop import Workshop


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
            "before_sha256": self.before,
            **self.samples,
        }
        if self.leave and learner.reads_teacher:
            facts |= self.leave(learner.record)
        finish(learner, self.kind, facts, about, keep_weights=learner.record.id not in self.spare)
        last = learner.last()
        self.shop.emit("finished", id=learner.record.id, top1=last.top1 if last else None)
