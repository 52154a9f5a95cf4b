"""`kdbench status`: who works at what in a results folder, how far, and what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kdbench.catalogue.text import one_line
from kdbench.cli.completion import complete_suites
from kdbench.cli.options import Json, Only, Set, Tiny, Trials, load, results_folder, say
from kdbench.cli.plan import duration
from kdbench.errors import BadInput, BadSuite
from kdbench.store.live import JobAt, NetworkAt, Sighting, sightings
from kdbench.store.result import Failure
from kdbench.store.store import Store
from kdbench.store.suites import ArchivedFiles, kept_suites
from kdbench.suite.load import load_suite
from kdbench.suite.selection import select
from kdbench.suite.specs import RunSpec, stage_label
from kdbench.suite.suite import Suite


Folder = Annotated[Path, typer.Argument(metavar="RESULTS", parser=results_folder, help="A results folder.")]
Chosen = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SUITE…]", autocompletion=complete_suites, help="Default: the suites that were run into the folder."
    ),
]

SHOWN = 20
"""So many failures, and networks of a job, are printed one by one."""


def status(
    results: Folder,
    suites: Chosen = None,
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
    json_output: Json = False,
) -> None:
    """Show who works at what in a results folder, how far, since when, and what is left.

    From any machine that sees it.
    """
    store = Store(results)
    if not results.is_dir():
        raise BadInput(f"{results}: no such results folder")
    found = sorted(sightings(store), key=lambda each: (each.heartbeat.host, each.heartbeat.pid))
    chosen = chosen_suites(store, suites, trials, only, settings, tiny=tiny)
    if json_output:
        facts = {
            "results": str(results),
            "processes": [_facts(sighting) for sighting in found],
            "suites": [asdict(_count(suite, store, found)) for suite in chosen],
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    for line in (*_describe_processes(found), *describe_suites(chosen, store, found)):
        typer.echo(line)


def chosen_suites(
    store: Store,
    references: Sequence[str] | None,
    trials: int | None = None,
    only: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
    *,
    tiny: bool = False,
) -> list[Suite]:
    """The suites that are named, or else those that were run into a store, as they were run last."""
    if references:
        return load(references, [store.root], trials, only, tiny=tiny, settings=settings)
    known, suites = ArchivedFiles([store]), []
    for kept in kept_suites([store]):
        about = kept.about
        try:
            suite = load_suite(
                kept.original, trials or about.trials, known.tell, settings or (), tiny=tiny or about.tiny
            )
        except BadSuite as error:
            say(f"{kept.file} is left out: {error.problems[0]}")
            continue
        if about.part is not None and not (trials or only or settings):
            ids = {*about.part}
            suite = suite.part(run for run in suite.runs if run.id in ids)
        suites.append(suite)
    return select(suites, only)


@dataclass(frozen=True)
class FailedRun:
    """A run that stopped for good; ``kind`` is ``diverged`` or ``error``."""

    id: str
    label: str
    kind: str
    reason: str


@dataclass(frozen=True)
class SuiteProgress:
    """How far what was started of a suite is, in runs: the ``tiny`` ones, or a part of ``all``.

    ``at_work`` are those in training, of those left.
    """

    name: str
    tiny: bool
    all: int
    runs: int
    done: int
    left: int
    at_work: int
    failed: tuple[FailedRun, ...]


def _count(suite: Suite, store: Store, found: Sequence[Sighting]) -> SuiteProgress:
    jobs = [job for sighting in found if sighting.at_work for job in sighting.heartbeat.slots.values()]
    trained = {id for job in jobs for id in job.networks}
    labels = {run.id: run.label for run in suite.runs}
    missing = [id for id in labels if not store.run(id).done()]
    failures = {id: failure for id in missing if id not in trained and (failure := _failure_of(suite.specs[id], store))}
    return SuiteProgress(
        suite.name,
        suite.tiny,
        all=len((suite.whole or suite).specs),
        runs=len(labels),
        done=len(labels) - len(missing),
        left=len(missing) - len(failures),
        at_work=len(trained.intersection(missing)),
        failed=tuple(FailedRun(id, labels[id], each.kind, each.reason) for id, each in failures.items()),
    )


def _failure_of(spec: RunSpec, store: Store) -> Failure | None:
    """Why a run has stopped for good, or what it needs."""
    if failure := store.run(spec.id).failure():
        return failure
    for stage in spec.stages:
        record = store.record_of(stage)
        if not record.done() and (failure := record.failure()):
            return failure.model_copy(update={"reason": f"its teacher {stage_label(stage)} failed: {failure.reason}"})
    return None


def _facts(sighting: Sighting) -> dict[str, Any]:
    return {"state": _state(sighting), "age": round(sighting.age, 1), **sighting.heartbeat.model_dump(mode="json")}


def _state(sighting: Sighting) -> str:
    return "ended" if sighting.ended else "stale" if sighting.stale else "at work"


def _describe_processes(found: Sequence[Sighting]) -> Iterator[str]:
    at_work = sum(sighting.at_work for sighting in found)
    yield f"{at_work} processes at work." if at_work > 1 else f"{at_work or 'No'} process at work."
    for sighting in found:
        heartbeat = sighting.heartbeat
        blocked = "" if sighting.ended else heartbeat.process.state()
        names = [
            f"process {heartbeat.pid} on {heartbeat.host}",
            f"which is {blocked}" if blocked else "",
            heartbeat.batch_job,
            ", ".join(heartbeat.suites),
        ]
        if sighting.at_work:
            tail = f"for {_time(heartbeat.seconds + sighting.age)}"
        elif sighting.ended:
            tail = f"ENDED, last heard of {_time(sighting.age)} ago at:"
        else:
            tail = f"STALE, last heard of {_time(sighting.age)} ago at:"
        yield one_line(", ".join([*filter(None, names), tail]))
        for name, job in sorted(heartbeat.slots.items()):
            yield from _describe_job(name, job, sighting.age if sighting.at_work else 0.0)
        if sighting.at_work and not heartbeat.slots:
            yield "  waiting for what other processes are at" if heartbeat.left else "  nothing left to do"


def _describe_job(slot: str, job: JobAt, age: float) -> Iterator[str]:
    speed = f", {job.images_per_second:,.0f} images/s" if job.images_per_second else ""
    yield "  " + one_line(f"[{slot}] {job.title}, for {_time(job.seconds + age)}{speed}")
    for network in [*job.networks.values()][:SHOWN]:
        yield "    " + one_line(f"{network.label}: {_reached(network)}")
    if len(job.networks) > SHOWN:
        yield f"    … and {len(job.networks) - SHOWN} more"


def _reached(network: NetworkAt) -> str:
    top1 = f", top-1 {network.top1:.2f}" if network.top1 is not None else ""
    return (f"epoch {network.place}" if network.epochs else network.place) + top1


def describe_suites(suites: Sequence[Suite], store: Store, found: Sequence[Sighting]) -> Iterator[str]:
    """How far suites are, and which of their runs failed."""
    for suite in (_count(suite, store, found) for suite in suites):
        diverged = sum(run.kind == "diverged" for run in suite.failed)
        others = len(suite.failed) - diverged
        parts = [
            f"{suite.done:,} of {suite.runs:,} runs done",
            f"{suite.left:,} left" + (f" ({suite.at_work:,} of them in training)" if suite.at_work else ""),
            f"{diverged:,} diverged" if diverged else "",
            f"{others:,} failed" if others else "",
        ]
        of = [suite.name, "tiny" if suite.tiny else "", f"a part of {suite.all:,}" if suite.runs < suite.all else ""]
        yield f"{', '.join(filter(None, of))}: {', '.join(filter(None, parts))}"
        for run in suite.failed[:SHOWN]:
            word = "DIVERGED" if run.kind == "diverged" else "FAILED"
            yield "  " + one_line(f"{word} {run.label} ({run.id}): {run.reason}")
        if len(suite.failed) > SHOWN:
            yield f"  … and {len(suite.failed) - SHOWN:,} more"


def _time(seconds: float) -> str:
    return duration(seconds / 3600)
