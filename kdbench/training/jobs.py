"""The two jobs of a worker: train a teacher, train a cohort. Both can stop after any step and go on later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batches
from kdbench.errors import BadRecord, LostTeacher, message_of
from kdbench.evaluation import measure, measure_neighbours
from kdbench.files import quarantine
from kdbench.models.outputs import Shapes, measure_shapes
from kdbench.plan.cost import student_cost, teacher_cost, teacher_pass_cost
from kdbench.plan.plan import Cohort
from kdbench.store.record import Failure, Record, Result
from kdbench.suite.specs import Adapter, Imported, RunSpec, Scenario, SelfSupervised, Stage, StudentOf
from kdbench.training.build import (
    DamagedTeacher,
    load_teacher,
    on_device,
    online_layers,
    seen_size,
    student_learner,
    teacher_learner,
    with_head,
)
from kdbench.training.checkpoint import DamagedCheckpoint, load_checkpoint
from kdbench.training.context import Conclusion, Outcome, Workshop, claimed, fail
from kdbench.training.environment import Settings, describe, device_lost, out_of_memory
from kdbench.training.guide import Guide, LearningGuide
from kdbench.training.learner import Learner
from kdbench.training.loop import Examine, failure_of, train
from kdbench.training.parts import load_part, load_stage, part_learner
from kdbench.training.weights import store_weights


TEACHER_TRIAL = -1
"""A teacher's stream is that of a trial of its own, so that no student sees the teacher's batches."""


def train_teacher(spec: Stage, shop: Workshop, *, waited: bool = False) -> Outcome:
    """Train a teacher unless it is there, or another process is at it."""
    record = shop.store.teacher(spec.id)
    with claimed([record]) as mine:
        if not mine:
            return Outcome(busy=[spec.id])
        if settled(record, shop, waited):
            return Outcome()
        if isinstance(spec, Imported):
            file = shop.weights.find(spec)
            result = store_weights(spec, record, file, shop.data, describe(shop.device))
            shop.emit("finished", id=record.id, top1=result.last.top1 if result.last else None)
            return Outcome()
        return Outcome(stopped=not _train_stage(spec, record, shop))


def _train_stage(spec: Stage, record: Record, shop: Workshop) -> bool:
    """Train the last stage of a teacher. False if asked to stop before the end."""
    if isinstance(spec, Imported | StudentOf):
        raise ValueError("there is nothing to train in this stage of the teacher")
    if isinstance(spec, Adapter):
        return _train_part(spec, record, shop)
    recipe, data = spec.recipe, spec.dataset
    test = shop.data.test(data, recipe)
    stream: Batches
    examine: Examine
    if isinstance(spec, SelfSupervised):
        stream = shop.data.two_views(data, spec.pretraining, TEACHER_TRIAL)
        train_set = shop.data.train(data, recipe)
        examine = partial(measure_neighbours, train=train_set, test=test, classes=data.class_count)
    else:
        stream = shop.data.stream(data, Scenario(), recipe, TEACHER_TRIAL)
        examine = partial(measure, test=test)
    begin(record, spec.canonical(), shop)
    try:
        build = partial(teacher_learner, spec, shop.store, shop.device)
        learner, _ = resumed(build, shop, made_on(spec, shop))
    except DamagedTeacher as error:
        raise lost_teacher(error, shop) from None
    kind: Literal["classifier", "neighbours"] = "classifier" if spec.has_classifier else "neighbours"
    macs = {spec.id: teacher_cost(spec)}
    conclude = Conclusion(shop, "teacher", len(stream), len(test), macs, kind, made_on(spec, shop))
    return train([learner], None, stream, examine, shop.hooks(conclude))


def _train_part(spec: Adapter, record: Record, shop: Workshop) -> bool:
    """Train what a term needs of the finished teacher. It gives no classes, so nothing is tested."""
    stream = shop.data.stream(spec.dataset, Scenario(), spec.recipe, TEACHER_TRIAL)
    begin(record, spec.canonical(), shop)
    try:
        learner, _ = resumed(
            lambda: part_learner(spec, shop.store, shop.device, len(stream)), shop, made_on(spec, shop)
        )
    except DamagedTeacher as error:
        raise lost_teacher(error, shop) from None
    macs = {spec.id: teacher_cost(spec)}
    conclude = Conclusion(shop, "teacher", len(stream), 0, macs, before=made_on(spec, shop))
    return train([learner], None, stream, None, shop.hooks(conclude))


def made_on(spec: Stage, shop: Workshop) -> str | None:
    """The hash of the weights on which a teacher's last stage is made; None for the first."""
    result = _valid_result(shop.store.record_of(spec.parent)) if spec.parent else None
    return result.weights_sha256 if result else None


def train_cohort(
    runs: Sequence[RunSpec], shop: Workshop, *, waited: bool = False, spare: Iterable[str] = ()
) -> Outcome:
    """Train those of a cohort's runs that are not done and that no other process is at.

    ``spare``: ids of runs whose weights are not to be kept.
    """
    outcome = Outcome()
    with claimed([shop.store.run(spec.id) for spec in runs]) as mine:
        owned = {record.id for record in mine}
        outcome.busy = [spec.id for spec in runs if spec.id not in owned]
        todo = [spec for spec in runs if spec.id in owned and not settled(shop.store.run(spec.id), shop, waited)]
        for spec in todo:
            begin(shop.store.run(spec.id), spec.canonical(), shop)
        if todo:
            outcome.stopped = not _train_runs(todo, shop, frozenset(spare))
    return outcome


def settled(record: Record, shop: Workshop, waited: bool) -> bool:
    """Whether a claimed record needs no training; tells how it ended.

    ``waited`` says that another process was at it when this one first asked: its failure counts, too.
    """
    failure = record.failure() if waited else None
    result = _valid_result(record)
    if result:
        record.cleanup()
        shop.emit("finished", id=record.id, top1=result.last.top1 if result.last else None)
        return True
    if failure:
        shop.emit("failed", id=record.id, reason=failure.reason)
    return failure is not None


def _train_runs(specs: Sequence[RunSpec], shop: Workshop, spare: frozenset[str]) -> bool:
    """Train runs together; where memory runs out, one half after the other. False if asked to stop before the end.

    All have begun. Those that have finished or failed when memory runs out are not begun again.
    """
    try:
        return _train_together(specs, shop, spare)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = message_of(error)
    if shop.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(specs) == 1:
        fail(shop.store.run(specs[0].id), Failure(kind="error", epoch=0, reason=f"out of memory: {reason}"), shop)
        return True
    shop.emit("message", text=f"out of memory with {len(specs)} students at once: going on with half of them at a time")
    rest = [spec for spec in specs if not (shop.store.run(spec.id).failure() or shop.store.run(spec.id).done())]
    middle = len(rest) // 2
    return all(_train_runs(half, shop, spare) for half in (rest[:middle], rest[middle:]) if half)


def _train_together(specs: Sequence[RunSpec], shop: Workshop, spare: frozenset[str]) -> bool:
    first = specs[0]
    cohort = Cohort(tuple(specs))
    stream = shop.data.stream(first.dataset, first.scenario, first.recipe, first.trial, cohort.teacher_view)
    test = shop.data.test(first.dataset, first.recipe)
    guide = make_guide(cohort, shop)
    shown = (
        measure_shapes(guide.network, seen_size(first.dataset, cohort.teacher_view or first.recipe)) if guide else None
    )
    entries = {spec.id: _enrol(spec, guide, shown, stream.labels, shop) for spec in specs}
    enrolled = {id: entry for id, entry in entries.items() if entry is not None}
    taught = [(learner, state) for learner, state in enrolled.values() if learner.reads_teacher]
    if guide and taught:
        _, earliest = min(taught, key=lambda entry: entry[0].progress.behind)
        guide.restore(earliest)
    macs = {s.id: student_cost(s) + teacher_pass_cost(s) / max(1, len(taught)) for s in specs if s.id in enrolled}
    leave = partial(guide.leave, test=test) if guide else None
    samples = shop.data.samples(first.dataset, first.scenario, first.trial) if first.scenario != Scenario() else None
    facts = samples.facts() if samples else {}
    conclude = Conclusion(shop, "run", len(stream), len(test), macs, samples=facts, leave=leave, spare=spare)
    learners = [learner for learner, _ in enrolled.values()]
    return train(learners, guide, stream, partial(measure, test=test), shop.hooks(conclude))


def _enrol(
    spec: RunSpec, guide: Guide | None, shown: Shapes | None, labels: Tensor, shop: Workshop
) -> tuple[Learner, dict[str, Any]] | None:
    """A run's learner and the teacher's state at its last checkpoint; None, and a failure, where it cannot be built."""
    record = shop.store.run(spec.id)
    network = guide.network if guide and spec.teacher else None
    settings = Settings()
    try:
        parts = [load_part(part, shop.store, network, shop.device) for part in spec.adapters] if network else []
        settings.put_back()
        build = partial(student_learner, spec, shop.store, network, labels.clone(), shop.device, parts, shown)
        return resumed(build, shop, shop.store.hashes(spec.dependencies))
    except DamagedTeacher as error:
        raise lost_teacher(error, shop) from None
    except Exception as error:
        if out_of_memory(error) or device_lost(error):
            raise
        fail(record, failure_of(error, 0), shop)
        return None


def make_guide(cohort: Cohort, shop: Workshop) -> Guide | None:
    """The teacher of a cohort, finished or learning beside it; None where no run reads one."""
    if cohort.teacher is None:
        return None
    try:
        network = load_teacher(cohort.teacher, shop.store, shop.device)
    except DamagedTeacher as error:
        raise lost_teacher(error, shop) from None
    bf16 = cohort.runs[0].recipe.precision == "bf16"
    own_test = shop.data.test(cohort.runs[0].dataset, cohort.teacher_view) if cohort.teacher_view else None
    if cohort.head is None:
        result = _valid_result(shop.store.record_of(cohort.teacher))
        known = result.accuracy(cohort.teacher.checkpoint) if result else None
        tested_after = known.epoch if known and cohort.runs[0].teacher_seen_elsewhere else None
        return Guide(network, bf16=bf16, own_test=own_test, tested_after=tested_after)
    spec = online_layers(cohort.runs[0], cohort.teacher, cohort.head)
    head = on_device(with_head(network, spec), shop.device)
    return LearningGuide(head, cohort.head.recipe, bf16=bf16, own_test=own_test)  # type: ignore[arg-type]


def lost_teacher(error: DamagedTeacher, shop: Workshop) -> LostTeacher:
    """Set a damaged stage of a teacher aside, unless another process has done so already."""
    record = shop.store.record_of(error.spec)
    with claimed([record]) as mine:
        if not mine:
            return LostTeacher(f"{error}; another process is at it")
        try:
            load_stage(error.spec, shop.store, shop.device)
        except BadRecord:
            name = quarantine(record.folder).name if record.folder.is_dir() else "already"
            return LostTeacher(f"{error}; the teacher is set aside ({name}) and made again")
    return LostTeacher(f"{error}; another process has made it again")


def resumed(build: Callable[[], Learner], shop: Workshop, made_on: str | None) -> tuple[Learner, dict[str, Any]]:
    """A learner at its last checkpoint, or at its beginning; and the teacher's state at that moment.

    ``made_on``: the hashes of the weights that it needs. What was learned on others is not gone on with.
    """
    settings = Settings()
    try:
        learner = build()
        learner.made_on = made_on
        try:
            state, message = load_checkpoint(learner)
        except DamagedCheckpoint as error:
            learner, state, message = build(), {}, str(error)
            learner.made_on = made_on
    finally:
        if changed := settings.put_back():
            shop.emit(
                "message",
                text=f"loading a run's terms changed torch's {', '.join(changed)}: put back, for all runs share it",
            )
    if message:
        place = {"epoch": learner.progress.epoch, "batches": learner.progress.batches}
        shop.emit("resumed", id=learner.record.id, text=message, **place, **learner.length)
    learner.progress.sessions += 1
    return learner, state


def begin(record: Record, spec: dict[str, Any], shop: Workshop) -> None:
    """Prepare a record for training."""
    for message in record.begin(spec):
        shop.emit("message", text=message)


def _valid_result(record: Record) -> Result | None:
    try:
        return record.result()
    except BadRecord:
        return None
