"""kdbench run: train what is missing, then print the tables."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.options import Data, Only, Results, Suites, Trials, select
from kdbench.cli.report import Format, render
from kdbench.errors import BadSuite, Interrupted, KdbenchError, Problem


if TYPE_CHECKING:
    from kdbench.execution.devices import Slot
    from kdbench.execution.pool import Pool, PoolResult
    from kdbench.execution.worker_handle import WorkerOptions
    from kdbench.plan.plan import Plan
    from kdbench.store.store import Store
    from kdbench.suite.suite import Suite


def run(
    suites: Suites,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Annotated[str, typer.Option("--devices", help="auto, cpu, or GPU numbers such as 0,1.")] = "auto",
    jobs_per_device: Annotated[
        int | None,
        typer.Option(
            "--jobs-per-device", min=1, help="Workers that share a device. Default: 1 on a GPU, cores on a CPU."
        ),
    ] = None,
    trials: Trials = None,
    only: Only = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch data sets that are missing.")] = False,
    retry_diverged: Annotated[
        bool, typer.Option("--retry-diverged", help="Try runs again whose loss diverged.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option("--checkpoint-seconds", min=0.0, help="Save a resume point when the last one is this old.")
    ] = 30.0,
    format: Annotated[Format, typer.Option("--format", "-f", help="How the tables are printed.")] = Format.terminal,
) -> None:
    """Train what is missing of the suites, then print their tables. Safe to kill: run it again to go on."""
    from kdbench.execution.devices import make_slots
    from kdbench.execution.worker_handle import WorkerOptions
    from kdbench.plan.plan import make_plan
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suites

    loaded = select(load_suites(suites, trials), only)
    specs = [spec for suite in loaded for spec in suite.specs.values()]
    store = Store(results)
    plan = make_plan(specs, store, retry_diverged=retry_diverged)
    if dry_run:
        from kdbench.cli.plan import describe, summarise

        typer.echo(describe(summarise(specs, results, 1)))
        return
    failed: dict[str, str] = {}
    if plan.runs:
        store.check_writable()
        if not download:
            _check_data(plan, data)
        slots = make_slots(devices, jobs_per_device)
        plan = make_plan(specs, store, len(slots), retry_diverged=retry_diverged)
        options = WorkerOptions(results, data, download, checkpoint_seconds)
        outcome = _train(loaded, plan, slots, options)
        again = "go on with the same command:\n  " + shlex.join(["kdbench", *sys.argv[1:]])
        if outcome.interrupted:
            raise Interrupted(f"Stopped. What was trained up to the last checkpoint is saved; {again}")
        if outcome.fatal:
            raise KdbenchError(
                f"{outcome.fatal}\nNothing can be saved there, so the work stops here. Repair that, then {again}"
            )
        failed = outcome.failed
    typer.echo(render(loaded, [store], format), nl=False)
    _report_failures(loaded, store, failed)


def _train(suites: Sequence[Suite], plan: Plan, slots: Sequence[Slot], options: WorkerOptions) -> PoolResult:
    from kdbench.cli.progress import Progress
    from kdbench.execution.pool import Pool

    with Progress(suites, plan) as progress:
        pool = Pool(slots, options, progress.listen)
        with _signals(pool):
            return pool.run(plan)


@contextmanager
def _signals(pool: Pool) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the workers finish the epoch and save, the second ends them at once."""
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        (pool.stop if count == 1 else pool.kill)()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_data(plan: Plan, data: Path) -> None:
    """Raise unless the files of every data set that the plan needs are there."""
    from kdbench.catalogue.datasets import dataset

    names = {run.dataset.name for cohort in plan.cohorts for run in cohort.runs}
    problems = [
        Problem("--data", 0, "", dataset(n).how_to_get(data)) for n in sorted(names) if dataset(n).missing(data)
    ]
    if problems:
        raise BadSuite(problems)


def _report_failures(suites: Sequence[Suite], store: Store, failed: dict[str, str]) -> None:
    """Raise for an exit code of 1 where runs have failed, now or in an earlier session."""
    reasons = {run.id: (run.label, failed.get(run.id)) for suite in suites for run in suite.runs}
    lines = []
    for id, (label, reason) in reasons.items():
        failure = None if reason or store.run(id).done() else store.run(id).failure()
        if reason or failure:
            lines.append(f"  {label} ({id}): {reason or (failure and failure.reason)}")
    lines += [f"  teacher {id}: {reason}" for id, reason in failed.items() if id not in reasons]
    if lines:
        raise KdbenchError("\n".join([f"{len(lines)} failed:", *lines, "More: kdbench show ID"]))
