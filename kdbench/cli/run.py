"""`kdbench run`: trains what is missing, and prints the tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kdbench.catalogue.text import command, printable, shell_line
from kdbench.cli.options import Data, Only, Results, Set, Shard, Suites, Tiny, Trials, load, say
from kdbench.cli.plan import describe, summarise
from kdbench.cli.plot import plot
from kdbench.cli.progress import RunProgress
from kdbench.cli.report import FormatOption, command_lines, render, tell_changed
from kdbench.errors import BadInput, CannotSave, Interrupted, KdbenchError, NoDevice
from kdbench.execution.runner import OnEvent, run_suites
from kdbench.execution.worker_handle import RunOptions
from kdbench.reporting.options import Format
from kdbench.store.store import Store
from kdbench.suite.schema import device_count
from kdbench.suite.suite import Suite
from kdbench.tracking import Tool, Tracking, open_tracker


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
DevicesPerRun = Annotated[
    str | None,
    typer.Option(
        "--devices-per-run",
        help="Devices that train one run together, or auto: several where one run would keep all others waiting. "
        "Default: the suite's devices_per_run, or 1.",
    ),
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
    track: Annotated[
        Tool | None, typer.Option("--track", help="Show curves there as they grow; each is an extra of the same name.")
    ] = None,
    devices_per_run: DevicesPerRun = None,
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
    if dry_run:
        typer.echo(printable(describe(summarise(loaded, results, 1, data=data))))
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
        parse_devices_per_run(devices_per_run),
    )
    with tracking(track, loaded, results) as tracked, progress(loaded, tracked) as on_event:
        failed = run_suites(loaded, options, on_event)
    folders = [results] if results != Path("results") else []
    elsewhere = data if data != Path("data") else None
    commands = command_lines(suites, folders, trials, only, settings, tiny=tiny, data=elsewhere)
    typer.echo(render(loaded, [store], format, commands), nl=False)
    if quick:
        _draw_quick(results)
    _report_failures(loaded, store, failed)


def parse_devices_per_run(wanted: str | None) -> int | None:
    """The number that is meant; 0 for auto, None for what the suites say. Raises BadInput for anything else."""
    try:
        return (
            None if wanted is None else device_count(int(wanted) if wanted.isascii() and wanted.isdigit() else wanted)
        )
    except ValueError as error:
        raise BadInput(f"--devices-per-run {wanted}: {error}") from None


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
def progress(suites: Sequence[Suite] = (), also: OnEvent = lambda slot, event: None) -> Iterator[OnEvent]:
    """Show the progress of a run, and tell ``also`` of it; where it stops early, say how to resume it."""
    try:
        with closing(RunProgress(suites)) as display:

            def listen(slot: str, event: dict[str, Any]) -> None:
                display.listen(slot, event)
                also(slot, event)

            yield listen
    except (Interrupted, CannotSave, NoDevice) as error:
        again = shell_line(["kdbench", *sys.argv[1:]])
        raise type(error)(f"{error}; resume with the same command:\n  {again}") from None


def _report_failures(suites: Sequence[Suite], store: Store, failed: dict[str, str]) -> None:
    """Raise for an exit code of 1 where runs have failed, now or earlier."""
    runs = {run.id: run.label for suite in suites for run in suite.runs}
    measured = {each.spec.id: each.spec.label for suite in suites for each in suite.measurements}
    first = {id: f"{label} ({id})" for id, label in runs.items() if id in failed}
    others = {id: f"{measured[id]} ({id})" if id in measured else f"teacher {id}" for id in failed if id not in runs}
    if lines := [f"  {label}: {failed[id]}" for id, label in (first | others).items()]:
        more = f"More: {command('show', 'ID', results=store.root)}"
        raise KdbenchError("\n".join([f"{len(lines)} failed:", *lines, more]))
