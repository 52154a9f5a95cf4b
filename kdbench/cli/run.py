"""`kdbench run`: trains what is missing, and prints the tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.catalogue.text import command, printable, shell_line
from kdbench.cli.options import Data, Only, Results, Set, Shard, Suites, Tiny, Trials, load, say
from kdbench.cli.plan import CacheOutputs, DevicesPerRun, describe, duration, parse_devices_per_run, plan_facts
from kdbench.cli.plot import plot
from kdbench.cli.progress import RunProgress
from kdbench.cli.report import FormatOption, build_report, command_lines, for_terminal, selection, tell_changed
from kdbench.errors import BadInput, CannotSave, Interrupted, KdbenchError, NoDevice
from kdbench.execution.runner import OnEvent, run_suites
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.plan import Caching
from kdbench.reporting.options import Format, ReportOptions
from kdbench.reporting.writers import write_report
from kdbench.store.store import Store
from kdbench.suite.suite import Suite, devices_per_run
from kdbench.tracking import Tool, Tracking, open_tracker


if TYPE_CHECKING:
    import pandas as pd

    from kdbench.planning.plan import Plan
    from kdbench.reporting.report import Report
    from kdbench.reporting.tables import GridTable


Devices = Annotated[str, typer.Option("--devices", help="auto, cpu, or GPU numbers such as 0,1.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs-per-device",
        min=1,
        max=1024,
        help="Workers that share a device. Default: 1 on a GPU, one per core (at most 4) on a CPU.",
    ),
]
ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster", help="Train on a Ray cluster: its HOST:PORT, auto (the one here) or local (started here)."
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch data sets and published weights that are missing.")]
RetryDiverged = Annotated[bool, typer.Option("--retry-diverged", help="Try runs again whose loss diverged.")]
CheckpointSeconds = Annotated[
    float,
    typer.Option(
        "--checkpoint-seconds",
        min=0.0,
        max=86_400.0,
        help="Save a resume point when the last one is this old; 0: always.",
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="On a GPU: the same bits each time, in float32 throughout; slower.")
]
Eager = Annotated[
    bool, typer.Option("--eager", help="On a GPU: launch kernel by kernel, instead of replaying steps as graphs.")
]


def run(
    suites: Suites,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
    jobs_per_device: Jobs = None,
    cluster: ClusterOption = "",
    trials: Trials = None,
    only: Only = None,
    shard: Shard = None,
    settings: Set = None,
    tiny: Tiny = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    download: Download = False,
    retry_diverged: RetryDiverged = False,
    checkpoint_seconds: CheckpointSeconds = 30.0,
    deterministic: Deterministic = False,
    eager: Eager = False,
    caching: CacheOutputs = Caching.auto,
    track: Annotated[
        Tool | None, typer.Option("--track", help="Show curves there as they grow; each is an extra of the same name.")
    ] = None,
    per_run: DevicesPerRun = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="demo alone: the part of it that takes about a minute, with a picture.")
    ] = False,
    format: FormatOption = Format.terminal,
) -> None:
    """Train what is missing of the suites, then print their tables. Safe to kill: run it again to resume."""
    if quick:
        if suites != ["demo"]:
            raise BadInput("--quick is for the demo alone: kdbench run demo --quick")
        only = [*QUICK, *(only or ())]
    loaded = load(suites, [results], trials, only, tiny=tiny, settings=settings, shard=shard)
    if not loaded:
        return
    if dry_run:
        several = parse_devices_per_run(per_run)
        count = _device_count(devices, devices_per_run(loaded) if several is None else several)
        typer.echo(printable(describe(plan_facts(loaded, results, count, several, data=data, caching=caching))))
        return
    store = Store(results)
    tell_changed(loaded, [store])
    options = RunOptions(
        results,
        data,
        devices,
        jobs_per_device,
        download,
        checkpoint_seconds,
        retry_diverged,
        deterministic,
        eager,
        cluster,
        parse_devices_per_run(per_run),
        caching,
    )
    session = Session()
    with tracking(track, loaded, results) as tracked, progress(loaded, tracked, session.listen) as on_event:
        failed = run_suites(loaded, options, on_event)
    folders = [results] if results != Path("results") else []
    elsewhere = data if data != Path("data") else None
    commands = command_lines(suites, folders, trials, only, settings, tiny=tiny, data=elsewhere)
    report = build_report(loaded, [store])
    typer.echo(write_report(report, format, for_terminal(ReportOptions(commands=commands), None)), nl=False)
    if quick:
        _draw_quick(results)
    for line in closing_summary(session, report, results):
        say(line)
    if failed:
        raise KdbenchError("\n".join(describe_failures(loaded, store, failed)))
    say(f"Next: {commands.splitlines()[-1]}")
    if find_spec("matplotlib") and not quick:
        chosen = selection(suites, trials, only, settings, tiny=tiny)
        say(f"      {command('plot', 'bars', *chosen, '-o', 'bars.png', results=results)}")


def _device_count(named: str, per_run: int) -> int:
    """For how many devices a dry run plans: those that ``--devices`` names, but enough for one run.

    What ``auto`` and ``cpu`` mean is not looked up: that starts torch.
    """
    return max(1, per_run, len({*named.split(",")}))


QUICK = ("teacher=simclr", "strategy=simultaneous")
"""The part of the demo that --quick takes: ce, kd and ega on one student, beside which the teacher's new layers learn."""


def _draw_quick(results: Path) -> None:
    """Draw the quick demo's bars, if matplotlib is there."""
    try:
        plot(["bars", "demo"], output=results / "demo.png", results=[results], only=list(QUICK))
    except BadInput as error:
        say(str(error))


@contextmanager
def tracking(tool: Tool | None, suites: Sequence[Suite], results: Path) -> Iterator[OnEvent]:
    """Hand curves to a tool, if one is named, while they grow."""
    if tool is None:
        yield lambda slot, event: None
        return
    with closing(Tracking(open_tracker(tool, results / "curves" / tool, live=True), suites, say)) as tracker:
        yield tracker.listen


@contextmanager
def progress(suites: Sequence[Suite] = (), *others: OnEvent) -> Iterator[OnEvent]:
    """Show the progress of a run, and tell ``others`` of it; where it stops early, say how far it is and how to resume it."""
    display = RunProgress(suites)
    try:
        with closing(display):

            def listen(slot: str, event: dict[str, Any]) -> None:
                for each in (display.listen, *others):
                    each(slot, event)

            yield listen
    except (Interrupted, CannotSave, NoDevice) as error:
        again = shell_line(["kdbench", *sys.argv[1:]])
        reached = f"Reached {display.reached()} in {display.elapsed()}.\n" if display.networks else ""
        raise type(error)(f"{reached}{error}; resume with the same command:\n  {again}") from None


@dataclass
class Session:
    """What one call of `kdbench run` has done: ids of what was planned and finished, and the seconds of devices."""

    clock: Callable[[], float] = time.monotonic
    teachers: set[str] = field(default_factory=set)
    measurements: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    device_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._busy: dict[str, tuple[float, int]] = {}

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.clock() - self.started

    def listen(self, slot: str, event: dict[str, Any]) -> None:
        """Take note of one event."""
        match event["event"]:
            case "planned":
                plan: Plan = event["plan"]
                self.teachers.update(teacher.id for teacher in plan.teachers)
                self.measurements.update(spec.id for spec in plan.measurements)
            case "started":
                self._busy[slot] = self.clock(), event["devices"]
            case "finished":
                self.finished.add(event["id"])
            case "done" | "unusable" | "exit" if slot in self._busy:
                since, devices = self._busy.pop(slot)
                self.device_seconds += devices * (self.clock() - since)


MOST_LINES = 5
"""Lines of a summary for the best methods, and for what has failed."""


def closing_summary(session: Session, report: Report, results: Path) -> Iterator[str]:
    """What was done and how long it took, where it is, and which methods are best."""
    runs = report.runs.drop_duplicates("run_id")
    done = set(runs.loc[runs["status"] == "done", "run_id"])
    reused = _count(len(done - session.finished), "run")
    teachers, measurements = session.finished & session.teachers, session.finished & session.measurements
    finished = [
        _count(len(session.finished - teachers - measurements), "run"),
        _count(len(teachers), "teacher"),
        _count(len(measurements), "measurement"),
    ]
    took = f"in {_time(session.seconds)} ({_time(session.device_seconds)} of device time)"
    parts = [
        f"{_joined(finished)} finished {took}" if session.finished else "nothing was trained",
        f"{reused} reused" if reused else "",
        *(f"{count} {word}" for word, count in _unfinished(runs["status"]) if count),
    ]
    names = ", ".join(suite.name for suite in report.suites)
    yield f"{names}: {'; '.join(filter(None, parts))}"
    yield f"Results: {results}"
    if not any(suite.tiny for suite in report.suites):  # their numbers mean nothing
        lines = [*islice(_best_methods(report.all_grids), MOST_LINES + 1)]
        yield from lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "… and more pairs in the tables"]


def _unfinished(statuses: pd.Series) -> list[tuple[str, int]]:
    counts = statuses.value_counts()
    return [("failed", counts.get("failed", 0)), ("not finished", counts.get("started", 0) + counts.get("missing", 0))]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}" if number else ""


def _joined(parts: Sequence[str]) -> str:
    *first, last = filter(None, parts)
    return f"{', '.join(first)} and {last}" if first else last


def _time(seconds: float) -> str:
    return duration(seconds / 3600)


def _best_methods(tables: Sequence[GridTable]) -> Iterator[str]:
    """For each pair of networks the best method, and those that a paired t-test does not tell from it.

    Without trials that methods share none is the best: then the three highest are named without a ranking.
    """
    from kdbench.reporting.cells import measured_text
    from kdbench.reporting.keys import Group, pair_text
    from kdbench.reporting.statistics import not_separable

    varying = [key for key in Group._fields if len({getattr(table.group, key) for table in tables}) > 1]
    for table in tables:
        context = [text for key in varying if (text := getattr(table.group, key))]
        for pair in table.pairs:
            cells = table.cells[(table.cells["teacher"] == pair[0]) & (table.cells["student"] == pair[1])]
            cells = cells[cells["n"] > 0].sort_values("mean", ascending=False, kind="stable")
            if cells.empty:
                continue
            numbers = zip(cells["mean"], cells["sd"], cells["n"], cells["planned"], strict=True)
            texts = dict(zip(cells["method"], (measured_text(*each) for each in numbers), strict=True))
            highest, alike = table.best(pair), not_separable(table.samples, pair) - table.best(pair)
            best, others = ([method for method in texts if method in some] for some in (highest, alike))
            if best:
                found = f"best: {' and '.join(best)} {texts[best[0]]}"
                found += f"; not significantly different: {', '.join(others)}" if others else ""
            else:
                found = ", ".join(f"{method} {text}" for method, text in [*texts.items()][:3])
                found += "; too few shared trials to rank them" if len(texts) > 1 else ""
            yield f"{', '.join([*context, pair_text(pair)])}  {found}"


def describe_failures(suites: Sequence[Suite], store: Store, failed: dict[str, str]) -> Iterator[str]:
    """What has failed, now or earlier, with the first reasons, and the commands that show more and try again."""
    labels = {run.id: run.label for suite in suites for run in suite.runs}
    labels |= {each.spec.id: each.spec.label for suite in suites for each in suite.measurements}
    ids = sorted(failed, key=lambda id: id in labels)  # teachers first: others fail for want of them
    yield f"{len(failed)} failed:"
    for id in ids[:MOST_LINES]:
        yield f"  {f'{labels[id]} ({id})' if id in labels else f'teacher {id}'}: {failed[id]}"
    if len(ids) > MOST_LINES:
        yield f"  … and {len(ids) - MOST_LINES} more"
    diverged = any((failure := store.run(id).failure()) and failure.kind == "diverged" for id in failed)
    again = ["--retry-diverged"] if diverged and "--retry-diverged" not in sys.argv else []
    yield f"More: {command('show', ids[0], results=store.root)}"
    yield f"Try again: {shell_line(['kdbench', *sys.argv[1:], *again])}"
