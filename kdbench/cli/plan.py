"""kdbench plan: what would run, and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kdbench.catalogue.text import printable
from kdbench.cli.options import Data, Json, Only, Results, Set, Shard, Suites, Tiny, Trials, load, say
from kdbench.errors import BadInput, BadRecord
from kdbench.execution.cluster import connected
from kdbench.execution.simulation import play
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.disk import Disk, disk_needed
from kdbench.planning.plan import Caching, Plan, changed_plugins, make_plan, missing_files
from kdbench.planning.speed import choose, known_speeds
from kdbench.store.store import Store
from kdbench.suite.methods import plugin_folders
from kdbench.suite.schema import device_count
from kdbench.suite.specs import stage_label
from kdbench.suite.suite import Suite, devices_per_run, measurement_specs, run_specs


Devices = Annotated[
    int,
    typer.Option("--devices", "--slots", min=1, max=10_000, help="Devices, or shares of them, that run a job each."),
]
DevicesPerRun = Annotated[
    str | None,
    typer.Option(
        "--devices-per-run",
        help="Devices that train one run together, or auto: several where one run would keep all others waiting. "
        "Default: the suite's devices_per_run, or 1.",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster", help="On the devices that a Ray cluster has now: its HOST:PORT, auto (the one here) or local."
    ),
]
CacheOutputs = Annotated[
    Caching,
    typer.Option(
        "--cache-outputs",
        help="Keep a frozen teacher's outputs for all crops of the training images on disk, for methods that read no maps. "
        "auto: where that saves a tenth of the time and fills at most half of the free space.",
    ),
]
On = Annotated[str, typer.Option("--on", help="What to estimate for: cpu, gpu, or part of a measured device's name.")]


def plan(
    suites: Suites,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = 1,
    per_run: DevicesPerRun = None,
    cluster: Cluster = "",
    on: On = "",
    trials: Trials = None,
    only: Only = None,
    shard: Shard = None,
    settings: Set = None,
    tiny: Tiny = False,
    caching: CacheOutputs = Caching.auto,
    json_output: Json = False,
) -> None:
    """Show what would run: teachers, cohorts, runs, hours. Nothing is trained."""
    loaded = load(suites, [results], trials, only, tiny=tiny, settings=settings, shard=shard)
    several, hosts = parse_devices_per_run(per_run), list[str]()
    if cluster:
        if devices > 1:
            raise BadInput("--devices and --cluster exclude each other: a cluster says how many devices it has")
        with connected(RunOptions(results, data, cluster=cluster), say, writing=False) as there:
            slots = there.slots()
        hosts, on = [slot.host for slot in slots], on or slots[0].kind
        caching = Caching.never
    facts = plan_facts(loaded, results, hosts or devices, several, on, data=data, caching=caching)
    if json_output:
        typer.echo(json.dumps(facts, indent=1))
    else:
        typer.echo(printable(describe(facts)))


def parse_devices_per_run(wanted: str | None) -> int | None:
    """The number that is meant; 0 for auto, None for what the suites say. Raises BadInput for anything else."""
    try:
        return (
            None if wanted is None else device_count(int(wanted) if wanted.isascii() and wanted.isdigit() else wanted)
        )
    except ValueError as error:
        raise BadInput(f"--devices-per-run {wanted}: {error}") from None


_KINDS = {"probe": "linear probe", "similarity": "similarity"}


def plan_facts(
    suites: Sequence[Suite],
    results: Path,
    devices: int | Sequence[str],
    per_run: int | None = None,
    on: str = "",
    *,
    data: Path,
    caching: Caching = Caching.auto,
) -> dict[str, Any]:
    """A plan as JSON-ready facts. Hours come from speeds measured in the results folder, or kept from others, or assumed.

    ``devices``: how many there are, or the host of each. ``per_run`` of them train one run together; 0: as many as the
    scheduler finds worthwhile, None: what the suites say.
    """
    per_run = devices_per_run(suites) if per_run is None else per_run
    store = Store(results)
    specs = run_specs(suites)
    plugin_folders(specs)
    if per_run > 1:
        caching = Caching.never
    plan = make_plan(specs, store, measurements=measurement_specs(suites), caching=caching)
    precisions = Counter(run.recipe.precision for cohort in plan.cohorts for run in cohort.runs)
    speed = choose(known_speeds(store), on, max(precisions, key=precisions.__getitem__, default="fp32"))
    played = play(plan, devices, speed, devices_per_run=per_run)
    plan = plan.split_for(max(1, played.devices // max(1, per_run)), speed)
    return {
        "runs": plan.runs,
        "runs_settled": plan.runs_done,
        "changed_plugins": changed_plugins(specs, store),
        "teachers": [stage_label(teacher) for teacher in plan.teachers],
        "teachers_done": plan.teachers_done,
        "cohorts": [
            {
                "runs": len(c.runs),
                "teacher": str(c.teacher.network) if c.teacher else "",
                "dataset": c.runs[0].dataset.name,
            }
            for c in plan.cohorts
        ],
        "cached_outputs": [f"{outputs}, which {outputs.effect}" for outputs in plan.cached],
        "missing": missing_files(plan, data),
        "damaged": _damaged(store, plan),
        "measurements": [f"{_KINDS[spec.kind]} on {spec.dataset.name}" for spec in plan.measurements],
        "measurements_done": plan.measurements_done,
        "devices": played.devices,
        "devices_per_run": per_run or "auto",
        "jobs_on_several_devices": {str(width): count for width, count in sorted(played.widths.items()) if width > 1},
        "device": speed.kind,
        "device_name": speed.device,
        "speed": {"precision": speed.precision, "records": speed.records, "error": speed.error},
        "device_hours": played.trained / 3600,
        "device_hours_without_cohorts": speed.seconds(plan.work_alone) / 3600,
        "makespan_hours": played.makespan / 3600,
        "idle_share": played.idle_share,
        "disk_bytes": asdict(disk_needed(plan, played.devices)),
        "estimate": str(speed),
    }


def _damaged(store: Store, plan: Plan) -> list[str]:
    """Why runs are to do that have a result: what is wrong with it."""
    reasons = []
    for record in (store.run(run.id) for cohort in plan.cohorts for run in cohort.runs):
        try:
            if record.has_result_file():
                record.result()
        except BadRecord as error:
            reasons.append(str(error))
    return reasons


def describe(facts: dict[str, Any]) -> str:
    """The facts of a plan as lines."""
    lines = [f"{facts['runs']} runs to do in {len(facts['cohorts'])} cohorts, {facts['runs_settled']} settled already."]
    lines += facts["changed_plugins"]
    if facts["teachers"] or facts["teachers_done"]:
        teachers = _counted(facts["teachers"]) or "none"
        lines.append(f"Teachers to train: {teachers}; {facts['teachers_done']} at hand.")
    cohorts = Counter((cohort["runs"], cohort["dataset"], cohort["teacher"]) for cohort in facts["cohorts"])
    for (runs, dataset, teacher), count in cohorts.items():
        taught = f"with teacher {teacher}" if teacher else "without teacher"
        lines.append(f"  {count} × cohort of {runs} on {dataset} {taught}")
    lines += [f"Cached outputs: {outputs}." for outputs in facts["cached_outputs"]]
    lines += [f"  again: {reason}" for reason in facts["damaged"]]
    lines += [f"Missing: {message}" for message in facts["missing"]]
    if facts["measurements"]:
        measurements = _counted(facts["measurements"])
        lines.append(f"Measurements: {measurements}; {facts['measurements_done']} at hand.")
    if facts["runs"] or facts["measurements"]:
        kind, alone = facts["device"].upper(), duration(facts["device_hours_without_cohorts"])
        lines.append(f"{kind} time {duration(facts['device_hours'])} ({alone} if every run had its own teacher pass);")
        several = f"{facts['devices']} devices, which are idle for {facts['idle_share']:.0%} of it"
        where = several if facts["devices"] > 1 else "one device"
        lines.append(f"done after {duration(facts['makespan_hours'])} on {where}. Speed: {facts['estimate']}.")
        if widths := facts["jobs_on_several_devices"]:
            each = ", ".join(f"{count} on {width}" for width, count in widths.items())
            lines.append(f"Jobs on several devices: {each}; the others on one.")
        lines.append(f"Disk: {Disk(**facts['disk_bytes'])}.")
    return "\n".join(lines)


def duration(hours: float) -> str:
    """Hours as ``3.2 h``, ``12 min`` or ``40 s``."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 2 else f"{hours * 3600:.0f} s"


def _counted(names: list[str]) -> str:
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(names).items())
