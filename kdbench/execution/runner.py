"""Runs suites: plans what is missing, trains it on the devices, and repeats where damaged records had to be replaced."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from kdbench.catalogue.text import command
from kdbench.errors import BadInput, BadSuite, CannotSave, Interrupted, KdbenchError, Problem
from kdbench.execution.child import misfits
from kdbench.execution.devices import make_slots
from kdbench.execution.pool import Pool
from kdbench.execution.worker_handle import WorkerOptions
from kdbench.planning.plan import Plan, all_stages, auxiliaries_of, make_plan, missing_files
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.methods import plugin_folders
from kdbench.suite.specs import Imported, Stage, lineage
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class RunOptions:
    """Where results and data are, and on what to train.

    ``devices`` is ``auto``, ``cpu``, or GPU numbers such as ``0,1``; ``checkpoint_seconds`` is the age at which a resume
    point is replaced; ``weights`` holds files of weights by SHA-256, in addition to those that suites name.
    """

    results: Path = Path("results")
    data: Path = Path("data")
    devices: str = "auto"
    jobs_per_device: int | None = None
    download: bool = False
    checkpoint_seconds: float = 30.0
    retry_diverged: bool = False
    weights: Mapping[str, Path] = field(default_factory=dict)


OnEvent = Callable[[str, dict[str, Any]], None]
"""Is called with the name of a device slot ("" for none) and an event.

``event["event"]`` is ``planned`` (``plan``), ``message`` (``text``), ``started`` (``teacher``, ``runs``, ``measurement``),
``epoch``, ``resumed``, ``finished``, ``failed`` (``id``, ``reason``), ``done`` or ``exit``.
"""


def run_suites(
    suites: Sequence[Suite], options: RunOptions | None = None, on_event: OnEvent = lambda slot, event: None
) -> dict[str, str]:
    """Train and measure what is missing of suites.

    Returns the reasons of what failed, now or earlier, by the id of the run, teacher or measurement. Raises BadInput where
    nothing can be started, Interrupted after SIGINT or SIGTERM, and CannotSave where results cannot be written.
    """
    options = options or RunOptions()
    store = Store(options.results)
    specs = [spec for suite in suites for spec in suite.specs.values()]
    measurements = [each.spec for suite in suites for each in suite.measurements]
    unfinished = [spec for spec in specs if not store.run(spec.id).done()]
    runs = {each.id: each for spec in unfinished for each in (*auxiliaries_of(spec), spec)}
    students = {run.teacher.id: run.teacher for run in runs.values() if run.teacher and run.teacher.source_run}
    stages = all_stages(specs, measurements)
    failed = _run_until_consistent(suites, (), [*stages, *students.values()], options, on_event)
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
    suites: Sequence[Suite],
    wanted: Sequence[Stage],
    used: Sequence[Stage],
    options: RunOptions,
    on_event: OnEvent,
) -> dict[str, str]:
    """Quarantine damaged records and train what is missing, until nothing rests on a teacher that was replaced.

    A retrained teacher may differ, so whatever was made or measured with the damaged one is made again.
    """
    store = Store(options.results)
    measurements = [each.spec for suite in suites for each in suite.measurements]
    records = [store.run(id) for suite in suites for id in suite.specs]
    records += [store.measurement(spec.id) for spec in measurements]
    store.remove_empty_logs()
    for text in store.quarantine_damaged(records):
        on_event("", {"event": "message", "text": text})
    failed: dict[str, str] = {}
    for _ in range(2 + max((len(lineage(teacher)) for teacher in used), default=0)):
        damaged = store.quarantine_damaged_teachers(used)
        for text in damaged.values():
            on_event("", {"event": "message", "text": text})
        failed = _run_once(suites, wanted, store, options, on_event)
        if failed or not (damaged or any(store.measured(spec) is None for spec in measurements)):
            break
    return failed


def _run_once(
    suites: Sequence[Suite], wanted: Sequence[Stage], store: Store, options: RunOptions, on_event: OnEvent
) -> dict[str, str]:
    specs = [spec for suite in suites for spec in suite.specs.values()]
    plan = make_plan(
        specs,
        store,
        retry_diverged=options.retry_diverged,
        teachers=wanted,
        measurements=[each.spec for suite in suites for each in suite.measurements],
        largest=min((suite.max_cohort_size for suite in suites if suite.max_cohort_size), default=None),
    )
    if not plan.runs and not plan.teachers and not plan.measurements:
        with suppress(OSError, KdbenchError):  # results that can only be read are shown all the same
            keep_suites(suites, store)
        return {}
    needed = [need for spec in plan.measurements for need in spec.dependencies]
    runs = [run for cohort in plan.cohorts for run in cohort.runs]
    modules = plugin_folders([*specs, *runs, *plan.teachers, *needed])
    weights = dict(options.weights)
    for suite in suites:
        weights |= suite.weight_files
    _check_files(plan, weights, options)
    for text in store.check_writable():
        on_event("", {"event": "message", "text": text})
    keep_suites(suites, store)
    slots = make_slots(options.devices, options.jobs_per_device)
    plan = plan.on(len(slots))
    on_event("", {"event": "planned", "plan": plan})
    pool = Pool(
        slots,
        WorkerOptions(options.results, options.data, options.download, options.checkpoint_seconds, weights, modules),
        on_event,
    )
    with _stopping_on_signals(pool):
        outcome = pool.run(plan)
    if outcome.interrupted:
        raise Interrupted("Stopped. What was trained up to the last checkpoint is saved")
    if outcome.fatal:
        raise CannotSave(f"{outcome.fatal}\nNothing can be saved there, so the work stops here")
    return outcome.failed


def _check_files(plan: Plan, weights: Mapping[str, Path], options: RunOptions) -> None:
    """Raise BadInput where a file is missing that a plan needs, or weights are not those of their network."""
    imported = {t.weights.sha256 for t in plan.teachers if isinstance(t, Imported) and t.weights.sha256}
    if unknown := sorted(imported - weights.keys()):
        raise BadInput(
            f"weights sha256:{unknown[0]}: no teacher here was made from them. Import their file first: "
            f"{command('teachers', 'import', 'FILE', results=options.results)} --network … --dataset …"
        )
    if not options.download and (missing := missing_files(plan, options.data)):
        raise BadSuite([Problem("--data", 0, "", message) for message in missing])
    if wrong := misfits(plan.teachers, weights):
        raise BadInput("\n".join([*wrong, "Nothing was run."]))


@contextmanager
def _stopping_on_signals(pool: Pool) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the workers finish the step and save, the second ends them at once.

    The end of the terminal acts as the first, however often it is signalled; a process under nohup outlives it. Outside
    the main thread, where Python handles no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += number != signal.SIGHUP
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
