"""The two jobs of a worker: train a teacher, train a cohort. Both can stop after any step and be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batches
from kdbench.errors import BadRecord, LostTeacher, message_of
from kdbench.evaluation import measure, measure_neighbours
from kdbench.files import quarantine
from kdbench.models.outputs import Shapes, measure_shapes
from kdbench.planning.cost import student_cost, teacher_cost, teacher_pass_cost
from kdbench.planning.plan import Cohort
from kdbench.store.record import Failure, Record, Result
from kdbench.suite.specs import Adapter, Imported, RunSpec, Scenario, SelfSupervised, Stage, StudentOf
from kdbench.training.build import (
    DamagedTeacher,
    load_teacher,
    on_device,
    online_layers,
    seen_size,
    student_trainer,
    teacher_trainer,
    with_head,
)
from kdbench.training.checkpoint import DamagedCheckpoint, load_checkpoint
from kdbench.training.context import JobContext, JobResult, RunFinisher, fail, locked
from kdbench.training.environment import Settings, describe, device_lost, out_of_memory
from kdbench.training.loop import Evaluate, failure_of, train
from kdbench.training.teacher import FrozenTeacher, OnlineTeacher, load_part, load_stage, part_trainer
from kdbench.training.trainer import Trainer
from kdbench.training.weights import store_weights


TEACHER_TRIAL = -1
"""A teacher's stream is that of a trial of its own, so that no student sees the teacher's batches."""


def train_teacher(spec: Stage, ctx: JobContext) -> JobResult:
    """Train the last stage of a teacher, unless it is finished or another process trains it."""
    record = ctx.store.teacher(spec.id)
    with locked([record]) as mine:
        if not mine:
            return JobResult(busy=[spec.id])
        if already_finished(record, ctx):
            return JobResult()
        if isinstance(spec, Imported):
            file = ctx.weights.find(spec)
            result = store_weights(spec, record, file, ctx.data, describe(ctx.device))
            ctx.emit("finished", id=record.id, top1=result.last.top1 if result.last else None)
            return JobResult()
        return JobResult(stopped=not _train_stage(spec, record, ctx))


def _train_stage(spec: Stage, record: Record, ctx: JobContext) -> bool:
    """Train the last stage of a teacher. False if asked to stop before the end."""
    if isinstance(spec, Imported | StudentOf):
        raise ValueError("there is nothing to train in this stage of the teacher")
    if isinstance(spec, Adapter):
        return _train_part(spec, record, ctx)
    recipe, data = spec.recipe, spec.dataset
    test = ctx.data.test(data, recipe)
    stream: Batches
    evaluate: Evaluate
    if isinstance(spec, SelfSupervised):
        stream = ctx.data.two_views(data, spec.pretraining, TEACHER_TRIAL)
        train_set = ctx.data.train(data, recipe)
        evaluate = partial(measure_neighbours, train=train_set, test=test, classes=data.class_count)
    else:
        stream = ctx.data.stream(data, Scenario(), recipe, TEACHER_TRIAL)
        evaluate = partial(measure, test=test)
    begin(record, spec.canonical(), ctx)
    try:
        build = partial(teacher_trainer, spec, ctx.store, ctx.device)
        trainer, _ = restore_or_build(build, ctx, parent_sha256(spec, ctx))
    except DamagedTeacher as error:
        raise lost_teacher(error, ctx) from None
    kind: Literal["classifier", "neighbours"] = "classifier" if spec.has_classifier else "neighbours"
    macs = {spec.id: teacher_cost(spec)}
    conclude = RunFinisher(ctx, "teacher", len(stream), len(test), macs, kind)
    return train([trainer], None, stream, evaluate, ctx.callbacks(conclude))


def _train_part(spec: Adapter, record: Record, ctx: JobContext) -> bool:
    """Train a term's adapter on the finished teacher. An adapter gives no classes, so nothing is tested."""
    stream = ctx.data.stream(spec.dataset, Scenario(), spec.recipe, TEACHER_TRIAL)
    begin(record, spec.canonical(), ctx)
    try:
        trainer, _ = restore_or_build(
            lambda: part_trainer(spec, ctx.store, ctx.device, len(stream)), ctx, parent_sha256(spec, ctx)
        )
    except DamagedTeacher as error:
        raise lost_teacher(error, ctx) from None
    macs = {spec.id: teacher_cost(spec)}
    conclude = RunFinisher(ctx, "teacher", len(stream), 0, macs)
    return train([trainer], None, stream, None, ctx.callbacks(conclude))


def parent_sha256(spec: Stage, ctx: JobContext) -> str | None:
    """The hash of the weights that a teacher's last stage starts from; None for the first stage."""
    result = _valid_result(ctx.store.record_of(spec.parent)) if spec.parent else None
    return result.weights_sha256 if result else None


def train_cohort(runs: Sequence[RunSpec], ctx: JobContext) -> JobResult:
    """Train those of a cohort's runs that are not finished and that no other process trains."""
    with locked([ctx.store.run(spec.id) for spec in runs]) as mine:
        owned = {record.id for record in mine}
        todo = [spec for spec in runs if spec.id in owned and not already_finished(ctx.store.run(spec.id), ctx)]
        for spec in todo:
            begin(ctx.store.run(spec.id), spec.canonical(), ctx)
        finished = _train_runs(todo, ctx) if todo else True
    return JobResult(busy=[spec.id for spec in runs if spec.id not in owned], stopped=not finished)


def already_finished(record: Record, ctx: JobContext) -> bool:
    """Whether a locked record needs no training; if so, report how it ended."""
    failure = record.failure() if ctx.waited else None
    result = _valid_result(record)
    if result:
        record.cleanup()
        ctx.emit("finished", id=record.id, top1=result.last.top1 if result.last else None)
        return True
    if failure:
        ctx.emit("failed", id=record.id, reason=failure.reason)
    return failure is not None


def _train_runs(specs: Sequence[RunSpec], ctx: JobContext) -> bool:
    """Train runs together; if memory runs out, one half after the other. False if asked to stop before the end.

    Runs that have finished or failed when memory runs out are not started again.
    """
    try:
        return _train_together(specs, ctx)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = message_of(error)
    if ctx.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(specs) == 1:
        fail(ctx.store.run(specs[0].id), Failure(kind="error", epoch=0, reason=f"out of memory: {reason}"), ctx)
        return True
    ctx.emit(
        "message", text=f"out of memory with {len(specs)} students at once: continuing with half of them at a time"
    )
    rest = [spec for spec in specs if not (ctx.store.run(spec.id).failure() or ctx.store.run(spec.id).done())]
    middle = len(rest) // 2
    return all(_train_runs(half, ctx) for half in (rest[:middle], rest[middle:]) if half)


def _train_together(specs: Sequence[RunSpec], ctx: JobContext) -> bool:
    """Train runs on one stream with one teacher. False if asked to stop before the end."""
    first = specs[0]
    cohort = Cohort(tuple(specs))
    stream = ctx.data.stream(first.dataset, first.scenario, first.recipe, first.trial, cohort.teacher_view)
    test = ctx.data.test(first.dataset, first.recipe)
    teacher = open_teacher(cohort, ctx)
    teacher_shapes = (
        measure_shapes(teacher.network, seen_size(first.dataset, cohort.teacher_view or first.recipe))
        if teacher
        else None
    )
    entries = {spec.id: _build_student(spec, teacher, teacher_shapes, stream.labels, ctx) for spec in specs}
    built = {id: entry for id, entry in entries.items() if entry is not None}
    readers = [(trainer, state) for trainer, state in built.values() if trainer.reads_teacher]
    if teacher and readers:
        _, earliest = min(readers, key=lambda entry: entry[0].progress.behind)
        teacher.restore(earliest)
    macs = {s.id: student_cost(s) + teacher_pass_cost(s) / max(1, len(readers)) for s in specs if s.id in built}
    finalize = partial(teacher.finalize, test=test) if teacher else None
    samples = ctx.data.samples(first.dataset, first.scenario, first.trial) if first.scenario != Scenario() else None
    sample_fields = samples.result_fields() if samples else {}
    conclude = RunFinisher(ctx, "run", len(stream), len(test), macs, samples=sample_fields, finalize=finalize)
    trainers = [trainer for trainer, _ in built.values()]
    return train(trainers, teacher, stream, partial(measure, test=test), ctx.callbacks(conclude))


def _build_student(
    spec: RunSpec, teacher: FrozenTeacher | None, teacher_shapes: Shapes | None, labels: Tensor, ctx: JobContext
) -> tuple[Trainer, dict[str, Any]] | None:
    """A run's trainer and the teacher's state at its last checkpoint; None, with a stored failure, if it cannot be built."""
    record = ctx.store.run(spec.id)
    network = teacher.network if teacher and spec.teacher else None
    settings = Settings()
    try:
        parts = [load_part(part, ctx.store, network, ctx.device) for part in spec.adapters] if network else []
        settings.put_back()
        build = partial(student_trainer, spec, ctx.store, network, labels.clone(), ctx.device, parts, teacher_shapes)
        return restore_or_build(build, ctx, ctx.store.hashes(spec.dependencies) or None)
    except DamagedTeacher as error:
        raise lost_teacher(error, ctx) from None
    except (Exception, SystemExit) as error:
        if out_of_memory(error) or device_lost(error):
            raise
        fail(record, failure_of(error, 0), ctx)
        return None


def open_teacher(cohort: Cohort, ctx: JobContext) -> FrozenTeacher | None:
    """The teacher of a cohort, frozen or trained along; None if no run reads one."""
    if cohort.teacher is None:
        return None
    try:
        network = load_teacher(cohort.teacher, ctx.store, ctx.device)
    except DamagedTeacher as error:
        raise lost_teacher(error, ctx) from None
    bf16 = cohort.runs[0].recipe.precision == "bf16"
    own_test = ctx.data.test(cohort.runs[0].dataset, cohort.teacher_view) if cohort.teacher_view else None
    if cohort.head is None:
        result = _valid_result(ctx.store.record_of(cohort.teacher))
        known = result.accuracy(cohort.teacher.checkpoint) if result else None
        tested_after = known.epoch if known and cohort.runs[0].teacher_seen_elsewhere else None
        return FrozenTeacher(network, bf16=bf16, own_test=own_test, tested_after=tested_after)
    spec = online_layers(cohort.runs[0], cohort.teacher, cohort.head)
    head = on_device(with_head(network, spec), ctx.device)
    return OnlineTeacher(head, cohort.head.recipe, bf16=bf16, own_test=own_test)  # type: ignore[arg-type]


def lost_teacher(error: DamagedTeacher, ctx: JobContext) -> LostTeacher:
    """Quarantine a damaged stage of a teacher, unless another process has done so."""
    record = ctx.store.record_of(error.spec)
    with locked([record]) as mine:
        if not mine:
            return LostTeacher(f"{error}; another process trains it")
        try:
            load_stage(error.spec, ctx.store, ctx.device)
        except BadRecord:
            name = quarantine(record.folder).name if record.folder.is_dir() else "already"
            return LostTeacher(f"{error}; the teacher is quarantined ({name}) and redone")
    return LostTeacher(f"{error}; another process has made it again")


def restore_or_build(
    build: Callable[[], Trainer], ctx: JobContext, parent_sha256: str | None
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer at its last checkpoint, or at its beginning; and the teacher's state at that moment.

    ``parent_sha256``: the hashes of the weights it depends on. Checkpoints trained on other weights are discarded.
    """
    settings = Settings()
    try:
        trainer = build()
        trainer.parent_sha256 = parent_sha256
        try:
            state, message = load_checkpoint(trainer)
        except DamagedCheckpoint as error:
            trainer, state, message = build(), {}, str(error)
            trainer.parent_sha256 = parent_sha256
    finally:
        if changed := settings.put_back():
            ctx.emit(
                "message",
                text=f"loading a run's terms changed torch's {', '.join(changed)}: put back, for all runs share it",
            )
    if message:
        place = {"epoch": trainer.progress.epoch, "batches": trainer.progress.batches}
        ctx.emit("resumed", id=trainer.record.id, text=message, **place, **trainer.length)
    trainer.progress.sessions += 1
    return trainer, state


def begin(record: Record, spec: dict[str, Any], ctx: JobContext) -> None:
    """Prepare a record for training."""
    for message in record.begin(spec):
        ctx.emit("message", text=message)


def _valid_result(record: Record) -> Result | None:
    try:
        return record.result()
    except BadRecord:
        return None
