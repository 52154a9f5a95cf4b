"""kdbench run: train what is missing, then print the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.commands import command
from kdbench.catalogue.printable import printable
from kdbench.cli.options import Data, Only, Results, Suites, Tiny, Trials, load
from kdbench.cli.page import command_lines
from kdbench.cli.report import FormatOption, render, tell_changed
from kdbench.cli.work import Devices, Download, Jobs, Place, work_on
from kdbench.errors import KdbenchError
from kdbench.report.formats import Format


if TYPE_CHECKING:
    from kdbench.store.store import Store
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
    students = {s.teacher.id: s.teacher for s in (*between.values(), *unfinished) if s.teacher and s.teacher.made_by}
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
