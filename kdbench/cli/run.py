"""`kdbench run`: plans, trains what is missing, and prints the tables."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.text import command, printable, shell_line
from kdbench.cli.options import Data, Only, Results, Suites, Tiny, Trials, load, say
from kdbench.cli.report import FormatOption, command_lines, render, tell_changed
from kdbench.errors import BadInput, BadSuite, Interrupted, KdbenchError, Problem
from kdbench.report.options import Format


if TYPE_CHECKING:
    from kdbench.execution.pool import Pool
    from kdbench.plan.plan import Plan
    from kdbench.store.store import Store
    from kdbench.suite.specs import Stage
    from kdbench.suite.suite import Suite


def run(
    suites: Suites,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
    jobs_per_device: Jobs = None,
    trials: Trials = None,
    only: Only = None,
    tiny: Tiny = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    download: Download = False,
    retry_diverged: Annotated[
        bool, typer.Option("--retry-diverged", help="Try runs again whose loss diverged.")
    ] = False,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            "--checkpoint-seconds",
            min=0.0,
            max=86_400.0,
            help="Save a resume point when the last one is this old; 0: always.",
        ),
    ] = 30.0,
    format: FormatOption = Format.terminal,
) -> None:
    """Train what is missing of the suites, then print their tables. Safe to kill: run it again to go on."""
    from kdbench.plan.plan import all_stages, auxiliaries_of
    from kdbench.store.store import Store

    loaded = load(suites, [results], trials, only, tiny=tiny)
    specs = [spec for suite in loaded for spec in suite.specs.values()]
    store = Store(results)
    if dry_run:
        from kdbench.cli.plan import describe, summarise

        typer.echo(printable(describe(summarise(loaded, results, 1))))
        return
    tell_changed(loaded, [store])
    unfinished = [spec for spec in specs if not store.run(spec.id).done()]
    between = {each.id: each for spec in unfinished for each in auxiliaries_of(spec)}
    teachers = all_stages(specs, [each.spec for suite in loaded for each in suite.measurements])
    students = {s.teacher.id: s.teacher for s in (*between.values(), *unfinished) if s.teacher and s.teacher.source_run}
    place = Place(results, data, devices, jobs_per_device, download, checkpoint_seconds, retry_diverged)
    failed = work_on(loaded, teachers, place, store, checked=students.values())
    folders = [results] if results != Path("results") else []
    elsewhere = data if data != Path("data") else None
    commands = command_lines(suites, folders, trials, only or (), tiny=tiny, data=elsewhere)
    typer.echo(render(loaded, [store], format, commands), nl=False)
    _report_failures(loaded, store, failed)


def _report_failures(suites: Sequence[Suite], store: Store, failed: dict[str, str]) -> None:
    """Raise for an exit code of 1 where runs have failed, now or in an earlier session."""
    reasons = {run.id: (run.label, failed.get(run.id)) for suite in suites for run in suite.runs}
    lines = []
    for id, (label, reason) in reasons.items():
        failure = None if reason else store.run(id).failure()  # seldom there, and soon looked for
        if reason or (failure and not store.run(id).done()):
            lines.append(f"  {label} ({id}): {reason or (failure and failure.reason)}")
    measured = {each.spec.id: each.spec.label for suite in suites for each in suite.measurements}
    for id in measured:
        if (failure := store.measurement(id).failure()) and not store.measurement(id).done():
            failed.setdefault(id, failure.reason)
    others = {id: reason for id, reason in failed.items() if id not in reasons}
    for id, reason in others.items():
        lines.append(f"  {measured[id]} ({id}): {reason}" if id in measured else f"  teacher {id}: {reason}")
    if lines:
        raise KdbenchError(
            "\n".join([f"{len(lines)} failed:", *lines, f"More: {command('show', 'ID', results=store.root)}"])
        )


Devices = Annotated[str, typer.Option("--devices", help="auto, cpu, or GPU numbers such as 0,1.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs-per-device", min=1, max=1024, help="Workers that share a device. Default: 1 on a GPU, cores on a CPU."
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch data sets and published weights that are missing.")]


TINY_COHORT = 6
"""Runs of a tiny cohort, unless its teacher is the costlier part: SemCKD's learners take up to 0.4 gigabytes each."""


@dataclass(frozen=True)
class Place:
    """Where things are and on what they run. ``weights``: files of weights by SHA-256, beside those that suites name."""

    results: Path
    data: Path
    devices: str = "auto"
    jobs_per_device: int | None = None
    download: bool = False
    checkpoint_seconds: float = 30.0
    retry_diverged: bool = False
    weights: Mapping[str, Path] = field(default_factory=dict)


def work_on(
    suites: Sequence[Suite],
    teachers: Iterable[Stage],
    place: Place,
    store: Store,
    *,
    checked: Iterable[Stage] = (),
    wanted: Iterable[Stage] = (),
) -> dict[str, str]:
    """Train what is missing of the suites and the ``wanted`` teachers, as ``work`` does, after setting aside what is damaged.

    What is made again may come out otherwise, and what was made or measured on it must then be made again, too.
    ``checked``: students of runs that teach others.
    """
    from kdbench.suite.specs import lineage

    teachers, checked, wanted = list(teachers), list(checked), list(wanted)
    failed: dict[str, str] = {}
    records = [store.run(id) for suite in suites for id in suite.specs]
    records += [store.measurement(each.spec.id) for suite in suites for each in suite.measurements]
    store.remove_empty_logs()
    for message in store.quarantine_damaged(records):
        say(message)
    for _ in range(2 + max((len(lineage(teacher)) for teacher in teachers), default=0)):
        damaged = store.quarantine_damaged_teachers([*teachers, *checked])
        for message in damaged.values():
            say(message)
        failed = work(suites, wanted, place, store)
        outdated = any(store.measured(each.spec) is None for suite in suites for each in suite.measurements)
        if failed or not (damaged or outdated):
            break
    return failed


def work(suites: Sequence[Suite], teachers: Sequence[Stage], place: Place, store: Store) -> dict[str, str]:
    """Train what is missing of the suites, and of the teachers; returns what failed, with the reason.

    Raises BadInput where nothing can be started, Interrupted and KdbenchError where the work stopped before its end.
    """
    from kdbench.execution.devices import make_slots
    from kdbench.execution.pool import Pool
    from kdbench.execution.worker_handle import WorkerOptions
    from kdbench.plan.plan import make_plan
    from kdbench.store.suites import keep_suites
    from kdbench.suite.methods import plugin_folders

    specs = [spec for suite in suites for spec in suite.specs.values()]
    measurements = [each.spec for suite in suites for each in suite.measurements]
    lay_out = partial(
        make_plan,
        specs,
        store,
        retry_diverged=place.retry_diverged,
        teachers=teachers,
        measurements=measurements,
        largest=TINY_COHORT if any(suite.tiny for suite in suites) else None,
    )
    plan = lay_out()
    if not plan.runs and not plan.teachers and not plan.measurements:
        with suppress(OSError):  # results that can only be read are shown all the same
            keep_suites(suites, store)
        return {}
    needed = [need for spec in plan.measurements for need in spec.dependencies]
    beside = plugin_folders([*specs, *(run for cohort in plan.cohorts for run in cohort.runs), *plan.teachers, *needed])
    given = dict(place.weights)
    for suite in suites:
        given |= suite.weight_files
    _check_given(plan, given, place.results)
    if not place.download:
        check_files(plan, place.data)
    check_weight_files(plan.teachers, given)
    for trouble in store.check_writable():
        say(trouble)
    keep_suites(suites, store)
    slots = make_slots(place.devices, place.jobs_per_device)
    plan = lay_out(slots=len(slots))
    options = WorkerOptions(place.results, place.data, place.download, place.checkpoint_seconds, given, beside)
    from kdbench.cli.progress import RunProgress

    with RunProgress(suites, plan) as progress:
        pool = Pool(slots, options, progress.listen)
        with _signals(pool):
            outcome = pool.run(plan)
    repeat = "go on with the same command:\n  " + shell_line(["kdbench", *sys.argv[1:]])
    if outcome.interrupted:
        raise Interrupted(f"Stopped. What was trained up to the last checkpoint is saved; {repeat}")
    if outcome.fatal:
        raise KdbenchError(
            f"{outcome.fatal}\nNothing can be saved there, so the work stops here. Repair that, then {repeat}"
        )
    return outcome.failed


@contextmanager
def _signals(pool: Pool) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the workers finish the step and save, the second ends them at once.

    The end of the terminal is like the first, however often shell and system tell of it; a command under nohup outlives it.
    """
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


def _check_given(plan: Plan, given: Mapping[str, Path], results: Path) -> None:
    """Raise unless the file of every teacher that starts from the user's own weights is known."""
    from kdbench.suite.specs import Imported

    unknown = {t.weights.sha256 for t in plan.teachers if isinstance(t, Imported) and t.weights.sha256}
    if missing := sorted(unknown - given.keys()):
        raise BadInput(
            f"weights sha256:{missing[0]}: no teacher here was made from them. Import their file first: "
            f"{command('teachers', 'import', 'FILE', results=results)} --network … --dataset …"
        )


def check_weight_files(teachers: Iterable[Stage], given: Mapping[str, Path]) -> None:
    """Raise unless the users' files hold what the teachers need that start from them."""
    from kdbench.execution.child import misfits

    if found := misfits(teachers, given):
        raise BadInput("\n".join([*found, "Nothing was run."]))


def check_files(plan: Plan, data: Path) -> None:
    """Raise unless the files of every data set and of all published weights that the plan needs are there."""
    from kdbench.catalogue.datasets import dataset
    from kdbench.catalogue.networks import network
    from kdbench.suite.specs import Imported

    used = [run.dataset for cohort in plan.cohorts for run in cohort.runs]
    used += [teacher.dataset for teacher in plan.teachers if teacher.dataset]
    used += [spec.dataset for spec in plan.measurements]
    names = {spec.name for spec in used if not spec.stand_in}
    problems = [
        Problem("--data", 0, "", dataset(n).how_to_get(data)) for n in sorted(names) if dataset(n).missing(data)
    ]
    for teacher in plan.teachers:
        public = network(teacher.network).public
        if public and isinstance(teacher, Imported) and teacher.weights.source == public.source:
            folder = data / "weights"
            if not (folder / public.file).is_file():
                problems.append(Problem("--data", 0, "", public.how_to_get(folder)))
    if problems:
        raise BadSuite(problems)
