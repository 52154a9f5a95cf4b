"""Runs suites: plans what is missing, trains it on the devices, and repeats where damaged records had to be replaced."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from kdbench.catalogue.text import command
from kdbench.child import answer
from kdbench.errors import BadInput, BadSuite, Interrupted, KdbenchError, Problem
from kdbench.execution.cluster import connected
from kdbench.execution.devices import Slot, make_slots
from kdbench.execution.heartbeats import Heartbeats
from kdbench.execution.pool import Pool
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.cohorts import auxiliaries_of
from kdbench.planning.disk import disk_needed
from kdbench.planning.plan import Caching, Plan, all_stages, make_plan, missing_files
from kdbench.planning.speed import known_speeds
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.methods import plugin_folders
from kdbench.suite.specs import Imported, Stage, StudentOf, lineage, trained_stages
from kdbench.suite.suite import Suite, devices_per_run, measurement_specs, run_specs


OnEvent = Callable[[str, dict[str, Any]], None]
"""Is called with the name of a device slot ("" for none) and an event, whose name is ``event["event"]``.

From this process: ``planned`` (``plan``); ``started``, a job on a slot (``teacher``, ``runs``, ``measurement``, ``devices``:
how many, ``waited``: another process was at it before); ``message`` (``text``); ``failed`` (``id``, ``reason``).

From workers, besides the last two: ``ready``, its libraries are imported; ``under way`` (``id``, ``epoch``, ``epochs``,
``initial_epochs``, ``share`` of the epoch, ``images_per_second``) within an epoch; ``epoch`` (``id``, ``epoch``, ``loss``,
``top1`` in %, …) after one; ``resumed`` (``id``, ``epoch``, ``batches`` of the next, ``text``) from a checkpoint;
``finished`` (``id``, ``top1``); ``done``, the job has ended (``busy``: ids that other processes are at; or ``error``,
``detail``, ``fatal``; or ``lost_teacher``); ``unusable``, the device cannot train (``reason``); ``exit``, the process has
ended (``code``). Only the pool hears ``alive`` and ``placed``.
"""


def run_suites(
    suites: Sequence[Suite], options: RunOptions | None = None, on_event: OnEvent = lambda slot, event: None
) -> dict[str, str]:
    """Train and measure what is missing of suites.

    Returns the reasons of what failed, now or earlier, by the id of the run, teacher or measurement. Raises BadInput where
    nothing can be started, Interrupted after SIGINT or SIGTERM, CannotSave where results cannot be written, NoDevice where
    no device can be used.
    """
    options = options or RunOptions()
    store = Store(options.results)
    specs, measurements = run_specs(suites), measurement_specs(suites)
    students = {
        stage.id: stage
        for spec in specs
        if auxiliaries_of(spec) and not store.run(spec.id).done()
        for run in (*auxiliaries_of(spec), spec)
        if run.teacher and (stage := lineage(run.teacher)[0]).source_run
    }
    used = [*all_stages(specs, measurements), *students.values()]
    failed = _run_until_consistent(suites, (), used, options, on_event)
    records = {spec.id: store.run(spec.id) for spec in specs}
    records |= {spec.id: store.measurement(spec.id) for spec in measurements}
    for id, record in records.items():
        if id not in failed and (failure := record.failure()) and not record.done():
            failed[id] = failure.reason
    return failed


def train_teachers(
    teachers: Sequence[Stage], options: RunOptions, on_event: OnEvent = lambda slot, event: None
) -> dict[str, str]:
    """Train or import teachers, each with its stages. Returns and raises what ``run_suites`` does."""
    return _run_until_consistent((), teachers, teachers, options, on_event)


def _run_until_consistent(
    suites: Sequence[Suite], wanted: Sequence[Stage], used: Sequence[Stage], options: RunOptions, on_event: OnEvent
) -> dict[str, str]:
    """Quarantine damaged records and train what is missing, until nothing rests on a teacher that was replaced.

    A retrained teacher may differ, so new layers and adapters that were made on the damaged one are made again.
    """
    store = Store(options.results)
    specs, measurements = run_specs(suites), measurement_specs(suites)
    store.remove_empty_logs()
    records = [*(store.run(spec.id) for spec in specs), *(store.measurement(spec.id) for spec in measurements)]
    _tell(on_event, store.quarantine_damaged(records))
    failed: dict[str, str] = {}
    for _ in range(2 + max((len(lineage(teacher)) for teacher in used), default=0)):
        damaged = store.quarantine_damaged_teachers(used)
        _tell(on_event, damaged)
        plan = make_plan(
            specs,
            store,
            retry_diverged=options.retry_diverged,
            teachers=wanted,
            measurements=measurements,
            largest=min((suite.max_cohort_size for suite in suites if suite.max_cohort_size), default=None),
            caching=options.caching if caches(suites, options.devices_per_run, options.cluster) else Caching.never,
        )
        if not plan.runs and not plan.teachers and not plan.measurements:
            with suppress(OSError, KdbenchError):  # results that can only be read are shown all the same
                keep_suites(suites, store)
            return {}
        failed = _execute(plan, suites, _prepare(plan, suites, store, options, on_event), on_event)
        if failed or not (damaged or any(store.measured(spec) is None for spec in measurements)):
            break
    return failed


def caches(suites: Sequence[Suite], per_run: int | None, cluster: str) -> bool:
    """Whether teachers' outputs can be cached: not for several devices per run, nor for hosts that may not share a disk."""
    return not cluster and (devices_per_run(suites) if per_run is None else per_run) <= 1


def _prepare(plan: Plan, suites: Sequence[Suite], store: Store, options: RunOptions, on_event: OnEvent) -> RunOptions:
    """Check that a plan can be carried out, and archive its suites. Returns the options with all files and modules."""
    runs = [run for cohort in plan.cohorts for run in cohort.runs]
    measured = [stage for spec in plan.measurements for stage in spec.dependencies]
    modules = plugin_folders([*run_specs(suites), *runs, *plan.teachers, *measured])
    weights, images = dict(options.weights), dict(options.images)
    for suite in suites:
        weights |= suite.weight_files
        images |= suite.image_sources
    weights = {sha256: file.resolve() for sha256, file in weights.items()}
    options = replace(options, weights=weights, images=images, beside=modules)
    _check_files(plan, options)
    _tell(on_event, store.check_writable())
    keep_suites(suites, store)
    return options


def _execute(plan: Plan, suites: Sequence[Suite], options: RunOptions, on_event: OnEvent) -> dict[str, str]:
    """Train a plan on the devices. Returns the reasons of what failed; raises Interrupted, CannotSave or NoDevice."""

    def tell(text: str) -> None:
        _tell(on_event, [text])

    if options.devices_per_run is None:
        options = replace(options, devices_per_run=devices_per_run(suites))
    with ExitStack() as stack:
        cluster = stack.enter_context(connected(options, tell)) if options.cluster else None
        slots = cluster.slots() if cluster else make_slots(options.devices, options.jobs_per_device, tell)
        _check_precision(plan, slots)
        if warning := disk_needed(plan, len(slots)).warning(options.results):
            tell(warning)
        heartbeats = stack.enter_context(Heartbeats(Store(options.results), suites, on_event))
        heartbeats.listen("", {"event": "planned", "plan": plan})
        if cluster:
            pool = Pool(slots, options, heartbeats.listen, cluster.start, holding=True)
            stack.enter_context(cluster.watched(pool.inbox))
        else:
            pool = Pool(slots, options, heartbeats.listen)
        stack.enter_context(_stopping_on_signals(pool))
        outcome = pool.run(plan)
    known_speeds(Store(options.results))  # which keeps what was measured for other folders
    if outcome.interrupted:
        raise Interrupted(f"Stopped. What was trained up to the last checkpoint is saved in {options.results}")
    if outcome.fatal:
        raise outcome.fatal
    return outcome.failed


BF16_CAPABILITY = (8, 0)
"""The compute capability from which on a GPU multiplies bfloat16 matrices in hardware."""


def _check_precision(plan: Plan, slots: Sequence[Slot]) -> None:
    """Raise BadInput where a plan has bf16 and a GPU has not."""
    recipes = [run.recipe for cohort in plan.cohorts for run in cohort.runs]
    recipes += [stage.recipe for stage in plan.teachers if not isinstance(stage, Imported | StudentOf)]
    recipes += [run.head.recipe for cohort in plan.cohorts for run in cohort.runs if run.head]
    recipes += [spec.recipe for spec in plan.measurements if isinstance(spec, ProbeSpec)]
    lacking = [slot for slot in slots if slot.gpu and slot.gpu.capability < BF16_CAPABILITY]
    precisions: set[str | None] = {recipe.precision for recipe in recipes}
    precisions |= {run.teacher_precision for cohort in plan.cohorts for run in cohort.runs}
    if lacking and "bf16" in precisions:
        gpus = ", ".join(dict.fromkeys(f"{slot.name.partition('.')[0]}, {slot.gpu}" for slot in lacking))
        raise BadInput(
            f"precision bf16 needs GPUs of compute capability 8.0 or above, and here is {gpus}: choose others with "
            "--devices, or write 'precision: fp32' in the protocol. Nothing was run."
        )


def _tell(on_event: OnEvent, texts: Iterable[str]) -> None:
    for text in texts:
        on_event("", {"event": "message", "text": text})


def _check_files(plan: Plan, options: RunOptions) -> None:
    """Raise BadInput where a file is missing that a plan needs, or weights are not those of their network."""
    for teacher in plan.teachers:
        sha256 = teacher.weights.sha256 if isinstance(teacher, Imported) else None
        if sha256 and sha256 not in options.weights:
            known = f"--dataset {teacher.dataset.name}" if teacher.dataset else "--classes …"
            raise BadInput(
                f"weights sha256:{sha256}: no teacher here was made from them. Import their file first: "
                f"{command('teachers', 'import', 'FILE', results=options.results)} --network {teacher.network} {known}"
            )
    if not options.download and (missing := missing_files(plan, options.data)):
        raise BadSuite([Problem("--data", 0, "", message) for message in missing])
    if wrong := misfits(plan.teachers, options.weights):
        raise BadInput("\n".join([*wrong, "Nothing was run."]))


def misfits(teachers: Iterable[Stage], files: Mapping[str, Path]) -> list[str]:
    """One message for each teacher whose first stage cannot be made of its file; ``files``: by SHA-256."""
    imported = {
        stage.id: {
            "file": str(files[stage.weights.sha256].resolve()),
            "network": stage.network if isinstance(stage.network, str) else stage.network.canonical(),
            "classes": stage.dataset.class_count if stage.dataset else 1,
            "classifier": stage.weights.classifier,
            "key": stage.weights.key,
        }
        for teacher in teachers
        for stage in trained_stages(teacher)
        if isinstance(stage, Imported) and stage.weights.sha256 and stage.weights.sha256 in files
    }
    if not imported:
        return []
    code = "from kdbench.models.checkpoints import report_misfits\nreport_misfits()"
    request = {"files": [*imported.values()], "beside": {top: str(at) for top, at in plugin_folders(teachers).items()}}
    output = answer(code, request, "the files of weights cannot be looked at")
    messages: list[str] = json.loads(output.splitlines()[-1])
    return [message for message in dict.fromkeys(messages) if message]


@contextmanager
def _stopping_on_signals(pool: Pool) -> Iterator[None]:
    """The first Ctrl-C lets the workers finish the step and save, the second ends them at once.

    SIGTERM acts as the first however often it comes: batch systems send it to all processes of a job, and each may pass it
    on. So does the end of the terminal; a process under nohup outlives it. Outside the main thread, where Python handles no
    signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += number == signal.SIGINT
        (pool.stop if count <= 1 else pool.kill)()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
