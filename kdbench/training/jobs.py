"""Two jobs of a worker: train a teacher, train a cohort. Both can stop after any step and be resumed."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batches
from kdbench.data.file_stream import FileStream, FileTestSet
from kdbench.data.output_cache import OutputCache
from kdbench.data.stream import Stream, TestSet
from kdbench.errors import LostTeacher, message_of
from kdbench.evaluation import Scores, measure, measure_neighbours
from kdbench.models import build
from kdbench.models.checkpoints import load_checkpoint, published_accuracy
from kdbench.models.outputs import Shapes, measure_shapes
from kdbench.planning.cost import cohort_work, student_work, teacher_pass_work, teacher_work
from kdbench.planning.output_cache import CachedOutputs, cached_outputs
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.result import Accuracy, Failure
from kdbench.suite.specs import (
    Adapter,
    Imported,
    RunSpec,
    Scenario,
    SelfSupervised,
    Stage,
    StudentOf,
    stage_from,
    stage_label,
)
from kdbench.training.build import (
    TEACHER_TRIAL,
    DamagedTeacher,
    load_teacher,
    on_device,
    online_layers,
    seed_key,
    seeded,
    seen_size,
    student_trainer,
    teacher_trainer,
    with_head,
)
from kdbench.training.context import JobContext, JobResult, RunFinisher, cost_fields
from kdbench.training.environment import LostRank, device_lost, out_of_memory
from kdbench.training.loop import Evaluate, failure_of, train
from kdbench.training.ranks import Ranks
from kdbench.training.replay import batches_at_once
from kdbench.training.replicas import on_several_devices
from kdbench.training.teacher import FrozenTeacher, OnlineTeacher, adapter_trainer, load_adapter
from kdbench.training.trainer import Trainer


def train_teacher(spec: Stage, ctx: JobContext) -> JobResult:
    """Train the last stage of a teacher, unless it is finished or another process trains it.

    Raises LostTeacher where an earlier stage proves damaged, BadInput where a file of weights is not usable.
    """
    record = ctx.store.teacher(spec.id)
    with ctx.claimed([record]) as mine:
        if not mine:
            return JobResult(busy=[spec.id])
        if ctx.already_finished(record):
            return JobResult()
        if isinstance(spec, Imported):
            _import_weights(spec, record, ctx)
            return JobResult()
        if isinstance(spec, SelfSupervised):  # its batches are not divided
            ctx = replace(ctx, replicas=())
        recipes = [] if spec.recipe is None else [spec.recipe]
        with on_several_devices({"teacher": spec.model_dump(mode="json")}, recipes, ctx) as together:
            return JobResult(stopped=not _train_stage(spec, record, together))


def train_along(job: Mapping[str, Any], ctx: JobContext) -> None:
    """Train what another process trains, in its company, on this device's portions. Nothing is stored."""
    if "teacher" in job:
        stage = stage_from(job["teacher"])
        _train_stage(stage, ctx.store.teacher(stage.id), ctx)
    else:
        _train_together([RunSpec.model_validate(spec) for spec in job["runs"]], ctx)


def _import_weights(spec: Imported, record: Record, ctx: JobContext) -> None:
    """Store a file's weights, or random ones, as a teacher, with their accuracy here and the one that the file states.

    Raises BadInput, with nothing written, where the file is missing or does not hold the teacher's network.
    """
    path, weights, accuracy, test_images = ctx.weights.find(spec), spec.weights, None, 0
    with seeded("teacher's weights", seed_key(spec)):
        network = build(spec.network, spec.dataset.class_count if spec.dataset else 1)
    if path:
        load_checkpoint(network, path, classifier=weights.classifier, key=weights.key)
    if not weights.classifier:
        network.remove_classifier()
    if spec.dataset and weights.classifier:
        test = ctx.data.test(spec.dataset, weights.preprocessing)
        test_images = len(test)
        (scores,) = measure([on_device(network, ctx.device)], test)
        accuracy = Accuracy(epoch=0, top1=scores.top1, top5=scores.top5)
    ctx.begin(record, spec.canonical())
    stated = published_accuracy(path) if path and accuracy else None
    fields = {
        "last": accuracy,
        "best": accuracy,
        "published_top1": stated and stated.own,
        "published_best": stated and stated.best,
        "test_images": test_images,
    }
    origin = {"file": path.name} if path else {}
    ctx.finish(record, "teacher", network.state_dict(), fields, {"seconds": 0.0, "sessions": 1, **origin})
    if (result := record.result()) and (text := result.contradiction(result.last)):
        ctx.emit("message", text=f"WARNING {stage_label(spec)}: {text}")


def _train_stage(spec: Stage, record: Record, ctx: JobContext) -> bool:
    """Train the last stage of a teacher. False if asked to stop before the end.

    A network without classifier is tested by its nearest neighbours; an adapter gives no classes and is not tested.
    """
    if isinstance(spec, Imported | StudentOf):
        raise ValueError("there is nothing to train in this stage of the teacher")
    recipe, data = spec.recipe, spec.dataset
    stream: Batches
    evaluate: Evaluate | None
    with ctx.ranks.after_the_first():
        if not isinstance(spec, SelfSupervised):
            stream = ctx.data.stream(data, Scenario(), recipe, TEACHER_TRIAL)
            test = None if isinstance(spec, Adapter) else ctx.data.test(data, recipe)
            evaluate = None if test is None else partial(_test, test)
        else:
            stream = ctx.data.two_views(data, spec.pretraining, TEACHER_TRIAL)
            known, test = ctx.data.train(data, recipe), ctx.data.test(data, recipe)
            evaluate = partial(_test_neighbours, known, test, data.class_count)
        ctx.begin(record, spec.canonical())
        if isinstance(spec, Adapter):
            make = partial(adapter_trainer, spec, ctx.store, ctx.device, len(stream))
        else:
            make = partial(teacher_trainer, spec, ctx.store, ctx.device)
        trainer, _ = ctx.restore_or_build(make, [spec.parent] if spec.parent else [])
    fields = {
        "train_images": len(stream),
        "test_images": 0 if test is None else len(test),
        "measure": "neighbours" if isinstance(spec, SelfSupervised) else "classifier",
    }
    work = teacher_work(spec)
    conclude = RunFinisher(ctx, "teacher", {spec.id: cost_fields(work, work, recipe.precision)}, fields)
    return train([trainer], None, stream, evaluate, ctx.callbacks(conclude), ctx.replay(recipe), ctx.ranks)


def train_cohort(runs: Sequence[RunSpec], ctx: JobContext) -> JobResult:
    """Train those of a cohort's runs that are not finished and that no other process trains.

    Raises LostTeacher where a stage of their teacher proves damaged.
    """
    records = {spec.id: ctx.store.run(spec.id) for spec in runs}
    with ctx.claimed(records.values()) as mine:
        todo = [spec for spec in runs if spec.id in mine and not ctx.already_finished(records[spec.id])]
        for spec in todo:
            ctx.begin(records[spec.id], spec.canonical())
        finished = not todo or _train_within_memory(todo, ctx)
    return JobResult(busy=[spec.id for spec in runs if spec.id not in mine], stopped=not finished)


def _train_within_memory(specs: Sequence[RunSpec], ctx: JobContext) -> bool:
    """Train runs together; if memory runs out, one half after the other. False if asked to stop before the end.

    Runs that have finished or failed when memory runs out are not started again.
    """
    try:
        job = {"runs": [spec.model_dump(mode="json") for spec in specs]}
        with on_several_devices(job, [spec.recipe for spec in specs], ctx) as together:
            return _train_together(specs, together)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = message_of(error)
    gc.collect()  # here the error is gone, but not yet the tensors of a circle of references
    if ctx.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(specs) == 1:
        failure = Failure(kind="error", epoch=0, reason=f"out of memory: {reason}")
        ctx.fail(ctx.store.run(specs[0].id), failure)
        return True
    ctx.emit(
        "message", text=f"out of memory with {len(specs)} students at once: continuing with half of them at a time"
    )
    rest = [spec for spec in specs if not (ctx.store.run(spec.id).failure() or ctx.store.run(spec.id).done())]
    middle = len(rest) // 2
    return all(_train_within_memory(half, ctx) for half in (rest[:middle], rest[middle:]) if half)


def _train_together(specs: Sequence[RunSpec], ctx: JobContext) -> bool:
    """Train runs on one stream with one teacher. False if asked to stop before the end."""
    lead = next((spec for spec in specs if spec.teacher), specs[0])  # who needs no teacher knows nothing of its view
    with ctx.ranks.after_the_first():
        stream = ctx.data.stream(lead.dataset, lead.scenario, lead.recipe, lead.trial, lead.teacher_view)
        test = ctx.data.test(lead.dataset, lead.recipe)
        teacher, shapes = open_teacher(lead, ctx), None
        if teacher:
            shapes = measure_shapes(teacher.network, seen_size(lead.dataset, lead.teacher_view or lead.recipe))
        students = [(spec, _build_student(spec, teacher, shapes, stream.labels, ctx)) for spec in specs]
    built = {spec: student for spec, student in students if student}
    cached = cached_outputs(specs) if ctx.cached and built else None
    if cached and teacher and not _look_up(cached, teacher, stream, ctx):
        return False
    there, *others = (set(ids) for ids in ctx.ranks.exchange([spec.id for spec in built]))
    if any(there - other for other in others):
        raise LostRank(f"a run can be built on the first of {ctx.ranks.size} devices, but not on all")
    built = {spec: student for spec, student in built.items() if spec.id in there}
    readers = [student for student in built.values() if student[0].reads_teacher]
    if teacher and readers:
        _, earliest = min(readers, key=lambda student: (student[0].progress.epoch, student[0].progress.batches))
        teacher.restore(earliest)
    share = cohort_work([*built], cached=cached is not None) * (1 / max(1, len(built)))  # as its seconds are shared
    passes = 0.0 if cached else 1 / max(1, len(readers))
    own = {spec: student_work(spec) + teacher_pass_work(spec) * passes for spec in built}
    costs = {spec.id: cost_fields(work, share, spec.recipe.precision) for spec, work in own.items()}
    if cached:
        costs = {id: {**cost, "cached_outputs": cached.id} for id, cost in costs.items()}
    fields: dict[str, Any] = {"train_images": len(stream), "test_images": len(test)}
    if lead.scenario != Scenario():
        fields |= ctx.data.samples(lead.dataset, lead.scenario, lead.trial).result_fields()
    finalize = partial(teacher.finalize, test=test) if teacher else None
    conclude = RunFinisher(ctx, "run", costs, fields, finalize)
    trainers = [trainer for trainer, _ in built.values()]
    at_once = batches_at_once(shapes, lead.recipe.batch) if teacher and shapes and not teacher.learns else 1
    callbacks, replay = ctx.callbacks(conclude), ctx.replay(lead.recipe, at_once)
    return train(trainers, teacher, stream, partial(_test, test), callbacks, replay, ctx.ranks)


TELL_SECONDS, POLL_SECONDS = 30.0, 1.0
"""How often the user hears how many crops are left, and how often it is seen whether other processes have made theirs."""


def _look_up(cached: CachedOutputs, teacher: FrozenTeacher, stream: Stream | FileStream, ctx: JobContext) -> bool:
    """Have a stream give a teacher's cached outputs, after those that are missing are made. False if asked to stop meanwhile.

    Several processes make them together, each crop once, from the same batches of images whoever does it.
    """
    folder = cached.folder(ctx.store)
    if folder is None or isinstance(stream, FileStream):
        raise LostTeacher(f"{cached.teacher.network}: the weights of the teacher are gone")
    indices = torch.arange(len(stream), device=ctx.device)
    sample = teacher.fixed_outputs(stream.shown.numbered(0, indices[:2]))
    cache = OutputCache(folder, len(stream), cached.crops, sample)
    told = -math.inf
    while not cache.complete:
        missing = cache.missing()
        for crop in missing:
            if ctx.should_stop():
                return False
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                ctx.emit("message", text=f"caching the outputs of {cached}: {len(cache.missing())} crops left")
            with suppress(Taken), ctx.store.outputs_lock(folder.name, crop).acquire(timeout=0):
                if not cache.file(crop).is_file():
                    images = (stream.shown.numbered(crop, part) for part in torch.split(indices, stream.batch))
                    cache.put(crop, map(teacher.fixed_outputs, images))
        for damaged in cache.open():
            ctx.emit("message", text=f"{damaged}: is not what was stored there; the outputs are made again")
        if missing and missing == cache.missing():
            time.sleep(POLL_SECONDS)  # other processes are at them
    stream.cache = cache
    return True


def _test(test: TestSet | FileTestSet, networks: Sequence[nn.Module], ranks: Ranks) -> list[Scores]:
    return measure(networks, test.batches(ranks.rank, ranks.size), ranks.add_up)


def _test_neighbours(
    known: TestSet | FileTestSet, test: TestSet | FileTestSet, classes: int, networks: Sequence[nn.Module], ranks: Ranks
) -> list[Scores]:
    return measure_neighbours(networks, known, test, classes)


def open_teacher(run: RunSpec, ctx: JobContext) -> FrozenTeacher | None:
    """A run's teacher, frozen, or with new layers that learn during the run; None if the run reads none."""
    if run.teacher is None:
        return None
    network = load_teacher(run.teacher, ctx.store, ctx.device)
    bf16 = (run.teacher_precision or run.recipe.precision) == "bf16"
    side = seen_size(run.dataset, run.teacher_view or run.recipe)
    how: dict[str, Any] = {"bf16": bf16, "widened": bf16 and run.recipe.precision == "fp32"}
    how |= {"inference": run.teacher_inference, "side": side}
    own_test = ctx.data.test(run.dataset, run.teacher_view) if run.teacher_view else None
    if run.head is not None:
        headed = with_head(network, online_layers(run)).to(ctx.device)
        return OnlineTeacher(headed, run.head.recipe, own_test=own_test, ranks=ctx.ranks, **how)
    result = ctx.store.record_of(run.teacher).result()
    known = result.accuracy(run.teacher.checkpoint) if result else None
    tested_after = known.epoch if known and run.teacher_seen_elsewhere else None
    return FrozenTeacher(network, own_test=own_test, tested_after=tested_after, **how)


def _build_student(
    spec: RunSpec, teacher: FrozenTeacher | None, shapes: Shapes | None, labels: Tensor, ctx: JobContext
) -> tuple[Trainer, dict[str, Any]] | None:
    """A run's trainer and the teacher's state at its last checkpoint; None, with a stored failure, if it cannot be built."""
    network = teacher.network if teacher and spec.teacher else None

    def make() -> Trainer:
        adapters = [load_adapter(stage, ctx.store, network, ctx.device) for stage in spec.adapters if network]
        return student_trainer(spec, ctx.store, network, labels.clone(), ctx.device, adapters, shapes)

    try:
        return ctx.restore_or_build(make, spec.dependencies)
    except (Exception, SystemExit) as error:
        if isinstance(error, DamagedTeacher) or out_of_memory(error) or device_lost(error):
            raise
        ctx.fail(ctx.store.run(spec.id), failure_of(error, 0))
        return None
