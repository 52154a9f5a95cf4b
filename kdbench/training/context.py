"""What a job of a worker works with, how it claims its records, resumes their trainers and ends them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.data.stream import DataSource
from kdbench.errors import BadRecord, LostLease, LostTeacher
from kdbench.files import quarantine
from kdbench.planning.cost import Work
from kdbench.store.lock import Taken
from kdbench.store.record import NO_WEIGHTS, Record, timestamp
from kdbench.store.result import Failure, Kind, Result
from kdbench.store.store import Store
from kdbench.suite.specs import Recipe, Stage
from kdbench.training.build import DamagedTeacher
from kdbench.training.checkpoint import DamagedCheckpoint, as_safetensors, load_checkpoint
from kdbench.training.environment import Settings, describe
from kdbench.training.loop import Callbacks
from kdbench.training.ranks import ALONE, Ranks
from kdbench.training.replay import Replay, why_eager
from kdbench.training.teacher import load_stage
from kdbench.training.trainer import Trainer
from kdbench.training.weights import WeightFiles


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
    ``eager``: steps are not replayed, though the device could. ``cached``: a cohort reads its teacher's cached outputs, and
    makes those that are not there. ``options``, what the worker was started with, and
    ``replicas`` are for the other processes that train the job with this one on devices of their own; ``ranks`` are all of
    them.
    """

    store: Store
    data: DataSource
    weights: WeightFiles
    device: torch.device
    emit: Callable[..., None]
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    eager: bool = False
    waited: bool = False
    cached: bool = False
    discard_weights: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    replicas: Sequence[Mapping[str, Any]] = ()
    ranks: Ranks = ALONE

    def callbacks(self, on_finish: Callable[[Trainer], None]) -> Callbacks:
        """The functions that the training loop calls."""
        conclude = on_finish if self.ranks.leads else lambda trainer: None
        return Callbacks(self._on_progress, self._on_epoch, conclude, self._stops, self.checkpoint_seconds)

    def _stops(self) -> bool:
        return self.ranks.agrees(self.should_stop())

    def replay(self, recipe: Recipe, at_once: int = 1) -> Replay | None:
        """What replays full batches, ``at_once`` made in one go; None where the device cannot, or is not to."""
        if self.eager or self.ranks.size > 1 or why_eager(self.device):
            return None
        return Replay(self.device, recipe.batch, lambda text: self.emit("message", text=text), at_once)

    def _on_progress(self, trainer: Trainer, share: float, speed: float) -> None:
        place = {"id": trainer.record.id, "epoch": trainer.progress.epoch, **trainer.length}
        self.emit("under way", **place, share=share, images_per_second=speed)

    def _on_epoch(self, trainer: Trainer, speed: float) -> None:
        row = trainer.progress.metrics[-1]
        scores = {key: row.get(key) for key in ("epoch", "loss", "top1")}
        self.emit("epoch", id=trainer.record.id, **trainer.length, images_per_second=speed, **scores)

    @contextmanager
    def claimed(self, records: Iterable[Record]) -> Iterator[set[str]]:
        """Lock those records that no other process has locked, and yield their ids.

        A stage of a teacher that proves damaged meanwhile is quarantined. Raises LostTeacher then.
        """
        with _locked(records) as mine:
            try:
                yield mine
            except DamagedTeacher as error:
                raise LostTeacher(f"{error}; {self._quarantine(error.spec)}") from None

    def _quarantine(self, stage: Stage) -> str:
        """Quarantine a damaged stage of a teacher, unless another process has done so. Returns what becomes of it."""
        record = self.store.record_of(stage)
        with _locked([record]) as mine:
            if not mine:
                return "another process trains it"
            try:
                load_stage(stage, self.store, self.device)
            except BadRecord:
                name = quarantine(record.folder).name if record.folder.is_dir() else "already"
                return f"the teacher is quarantined ({name}) and redone"
        return "another process has made it again"

    def already_finished(self, record: Record) -> bool:
        """Whether a locked record needs no training; if so, report how it ended."""
        failure = record.failure() if self.waited else None
        with suppress(LostLease):
            record.check_unfinished()
        if record.done() and (result := record.result()):
            record.cleanup()
            self.report(result)
            return True
        if failure:
            self.emit("failed", id=record.id, reason=failure.reason)
        return failure is not None

    def begin(self, record: Record, spec: dict[str, Any]) -> None:
        """Prepare a record for training."""
        if not self.ranks.leads:
            return
        for message in record.begin(spec):
            self.emit("message", text=message)

    def restore_or_build(
        self, build: Callable[[], Trainer], parents: Sequence[Stage]
    ) -> tuple[Trainer, dict[str, Any]]:
        """A trainer at its last checkpoint, or at its beginning; and the teacher's state at that moment.

        A checkpoint is quarantined where ``parents``, the networks that the trainer depends on, had other weights then.
        """

        def build_on_parents() -> Trainer:
            trainer = build()
            trainer.parent_sha256 = self.store.hashes(parents) or None
            trainer.ranks = self.ranks
            return trainer

        settings = Settings()
        try:
            trainer = build_on_parents()
            try:
                teacher_state, message = load_checkpoint(trainer)
            except DamagedCheckpoint as error:
                trainer, teacher_state, message = build_on_parents(), {}, str(error)
        finally:
            if changed := settings.put_back():
                text = f"loading a run's terms changed torch's {', '.join(changed)}: put back, for all runs share it"
                self.emit("message", text=text)
        if message:
            place = {"epoch": trainer.progress.epoch, "batches": trainer.progress.batches}
            self.emit("resumed", id=trainer.record.id, text=message, **place, **trainer.length)
        trainer.progress.sessions += 1
        return trainer, teacher_state

    def finish(
        self,
        record: Record,
        kind: Kind,
        weights: Mapping[str, Tensor],
        fields: Mapping[str, Any],
        metadata: Mapping[str, Any],
        metrics: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Store weights, metrics and, last of all, the result, and report it.

        The result holds the hash even of discarded weights. ``fields`` are those of a Result; ``metadata`` is what the work
        cost.
        """
        content = as_safetensors(weights)
        kept = record.id not in self.discard_weights
        if kept:
            record.write_bytes(record.weights_file.name, content)
        result = Result(
            id=record.id,
            kind=kind,
            **fields,
            weights_sha256=hashlib.sha256(content).hexdigest(),
            metrics_sha256=record.write_metrics(list(metrics)),
        )
        mark = {} if kept else NO_WEIGHTS
        record.finish(result, {"finished": timestamp(), **metadata, **describe(self.device), **mark}, replace=False)
        self.report(result)

    def report(self, result: Result) -> None:
        """Report that a record is finished."""
        self.emit("finished", id=result.id, top1=result.last.top1 if result.last else None)

    def fail(self, record: Record, failure: Failure) -> None:
        """Store a failure and report it."""
        if not self.ranks.leads:
            return
        record.fail(failure)
        self.emit("failed", id=record.id, reason=failure.reason)


@contextmanager
def _locked(records: Iterable[Record]) -> Iterator[set[str]]:
    """Lock those records that no other process has locked, and yield their ids."""
    with ExitStack() as stack:
        mine = set()
        for record in records:
            try:
                stack.enter_context(record.lock().acquire(timeout=0))
            except Taken:
                continue
            mine.add(record.id)
        yield mine


def cost_fields(own: Work, share: Work, precision: str) -> dict[str, Any]:
    """What a record's metadata says of the work behind it.

    ``own`` is the network's, with its part of the teacher's passes; ``share`` is the cohort's divided equally, as its seconds
    are.
    """
    return {"macs": own.macs, "work": asdict(share), "precision": precision}


@dataclass(frozen=True)
class RunFinisher:
    """Stores the result or the failure of each trainer that has ended.

    ``costs`` holds the ``cost_fields`` of each, by id; ``fields`` are those of the result that all trainers share;
    ``finalize`` stores the teacher that learned with the student, and returns the fields of the result that describe it.
    """

    ctx: JobContext
    kind: Kind
    costs: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, Any]
    finalize: Callable[[Record], dict[str, Any]] | None = None

    def __call__(self, trainer: Trainer) -> None:
        """Store the failure or the result."""
        record, progress = trainer.record, trainer.progress
        if trainer.failure is not None:
            self.ctx.fail(record, trainer.failure)
            return
        taught = self.finalize(record) if self.finalize and trainer.reads_teacher else {}
        weights = trainer.best_weights if trainer.keep_best else trainer.trainable_state_dict()
        fields = {"last": trainer.last(), "best": trainer.best(), **trainer.likeness(), **self.fields, **taught}
        fields["parent_sha256"] = trainer.parent_sha256
        spent = {"seconds": round(progress.seconds, 3), "sessions": progress.sessions}
        cost = {**spent, **self.costs[record.id]}
        self.ctx.finish(record, self.kind, weights or {}, fields, cost, progress.metrics)
