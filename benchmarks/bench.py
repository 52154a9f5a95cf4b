"""Measure kdbench, and write the tables of benchmarks/README.md from what was measured.

    python benchmarks/bench.py [--quick] [--only methods cohorts …] [--peer FOLDER] [--device cuda]
    python benchmarks/bench.py --tables

Each part's rows go to one JSON file, bench.json beside this script unless --output names another, with machine, date and
versions. A part that is measured again replaces its rows; what was measured on another machine or with other settings goes.
--quick tries every part within a minute; its numbers mean nothing, and it writes no file unless one is named. --peer is a
checkout of RepDistiller. --tables measures nothing: it writes the tables and, with all methods in the file,
kdbench/catalogue/costs.yaml, which `kdbench list methods` and `kdbench show` read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from grid import grid
from peer import ARGUMENTS as PEER_METHODS
from reports import make_results
from steps import Row, Setup, built, cohorts, method_names, methods, pass_over, saves, streams
from tables import costs_yaml, settings_of, write_tables

from kdbench.execution.devices import Slot
from kdbench.execution.worker_handle import RunOptions, WorkerHandle
from kdbench.files import write_text
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suites
from kdbench.training.environment import describe, prepare


HERE = Path(__file__).parent
README, COSTS = HERE / "README.md", HERE.parent / "kdbench" / "catalogue" / "costs.yaml"
PARTS = ("methods", "cohorts", "grid", "streams", "saves", "startup", "scale", "peer")
KDBENCH = [sys.executable, "-m", "kdbench"]


def main() -> None:
    options = _options()
    if options.tables:
        document = json.loads(options.output.read_text())
        write_text(README, write_tables(README.read_text(), document))
        if costs := costs_yaml(document):
            write_text(COSTS, costs)
        return
    device = prepare(options.device, options.threads)
    setup = Setup(
        device, options.teacher, options.student, options.batch, options.steps, options.repeats, options.precision
    )
    settings = {**asdict(setup), "device": device.type, "quick": options.quick}
    document = _document(options.output, settings, describe(device))
    for part in options.only or PARTS:
        if part == "peer" and not options.peer:
            continue
        started, rows = time.monotonic(), []
        print(f"\n{part}", flush=True)
        for row in _rows(part, setup, options):
            rows.append(row)
            print("  " + ", ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
        seconds = round(time.monotonic() - started, 1)
        document["parts"][part] = {"date": str(datetime.date.today()), "seconds": seconds, "rows": rows}
        if options.output:
            write_text(options.output, json.dumps(document, indent=1) + "\n")
    if options.only == ["methods"] and options.methods:
        print(costs_yaml(document, whole=False), end="")


def _document(output: Path | None, settings: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The file's content where it was measured here and under these settings, else one without parts."""
    machine.pop("peak_memory", None)
    new = {"machine": machine, "settings": settings, "parts": {}}
    try:
        old = json.loads(output.read_text()) if output else new
    except FileNotFoundError:
        return new
    return old if {**old, "parts": {}} == json.loads(json.dumps(new)) else new


def _rows(part: str, setup: Setup, options: argparse.Namespace) -> Iterable[Row]:
    """Measure one part."""
    quick = options.quick
    match part:
        case "methods":
            return methods(setup, options.methods or (("kd", "ce") if quick else method_names()))
        case "cohorts":
            return cohorts(setup, (1, 3) if quick else (1, 3, 9, 27))
        case "grid":
            fewer = replace(setup, **settings_of(part, {"steps": setup.steps, "repeats": setup.repeats}))
            return grid(fewer, ("kd",)) if quick else grid(fewer)
        case "streams":
            return streams(setup, (2 if quick else 100) * setup.batch)
        case "saves":
            return saves(setup, ("kd",) if quick else ("kd", "vid", "crd", "semckd"))
        case "startup":
            return startup(setup, setup.repeats)
        case "scale":
            return scale(["demo"], 3, 1) if quick else scale([*bundled_suites()], 9, setup.repeats)
        case _:
            return peer(setup, options.peer, ("kd",) if quick else tuple(PEER_METHODS), options.threads)


def startup(setup: Setup, repeats: int) -> Iterator[Row]:
    """Seconds until commands have answered, and until a worker is ready for its first job."""
    commands = {
        "kdbench --help": [*KDBENCH, "--help"],
        "kdbench plan demo": [*KDBENCH, "plan", "demo"],
        "kdbench validate demo": [*KDBENCH, "validate", "demo"],
        "kdbench list methods": [*KDBENCH, "list", "methods"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands.items():
            yield {"what": name, "seconds": _seconds(command, Path(folder), repeats)}
        kind = "gpu" if setup.device.type == "cuda" else "cpu"
        times = [_worker_seconds(Slot(kind, kind), Path(folder)) for _ in range(repeats)]
    yield {"what": "a worker is ready", "seconds": statistics.median(times)}


def _seconds(command: list[str], folder: Path, repeats: int) -> float:
    """Median seconds that a command takes."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _worker_seconds(slot: Slot, folder: Path) -> float:
    inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    started = time.perf_counter()
    worker = WorkerHandle(slot, RunOptions(folder, folder), inbox)
    try:
        while (event := inbox.get(timeout=600)[1])["event"] == "alive":
            pass
    finally:
        worker.close()
    if event["event"] != "ready":
        raise SystemExit(f"the worker is not ready: {event}")
    return time.perf_counter() - started


def scale(suites: list[str], trials: int, repeats: int) -> Iterator[Row]:
    """Seconds of plan and report on suites of which most runs are done."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch("os.fsync"):  # records that nobody needs need not outlive the power
            count = make_results(Store(Path(folder) / "A"), load_suites(suites, trials), 0.85)
        shared = [*suites, "--results", "A", "--trials", str(trials)]
        for name, arguments in {
            "plan": ["plan", *shared],
            "report": ["report", *shared],
            "report --format html": ["report", *shared, "--format", "html", "-o", "page.html"],
            "list runs": ["list", "runs", "--results", "A"],
        }.items():
            seconds = _seconds([*KDBENCH, *arguments], Path(folder), repeats)
            yield {"what": f"kdbench {name}", "runs": count, "seconds": seconds}


def peer(setup: Setup, folder: Path, names: tuple[str, ...], threads: int) -> Iterator[Row]:
    """RepDistiller's step, kdbench's alone, and its share of a cohort of all; in turn, the peer in a process of its own."""
    command = [sys.executable, str(HERE / "peer.py"), str(folder.resolve()), *names]
    for key in ("teacher", "student", "batch", "steps"):
        command += [f"--{key}", str(getattr(setup, key))]
    if threads:
        command += ["--threads", str(threads)]
    theirs: list[dict[str, float]] = []

    def ask() -> None:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs.append(json.loads(done.stdout.splitlines()[-1]))

    with built(setup, names) as cases:
        trainers = [case.trainer for case in cases.values()]
        lead = next(iter(cases.values()))
        together = partial(pass_over, trainers, lead.guide, lead.stream, 2, setup.replay())
        _, cohort, *alone = setup.medians([ask, together, *cases.values()])
    medians = [statistics.median(found[name] for found in theirs[1:]) for name in names]
    ours = [1000 * seconds / setup.steps for seconds in alone]
    for name, ms, own in zip(names, medians, ours, strict=True):
        yield {"method": name, "peer_ms": ms, "ms": own, "of_peer": own / ms}
    yield {"method": "sum", "peer_ms": sum(medians), "ms": sum(ours), "of_peer": sum(ours) / sum(medians)}
    ms = 1000 * cohort / setup.steps
    yield {"method": "cohort of all", "peer_ms": sum(medians), "ms": ms, "of_peer": ms / sum(medians)}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="try every part within a minute")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of the part methods: these, kd among them")
    parser.add_argument("--peer", type=Path, help="a checkout of RepDistiller")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tables", action="store_true", help="write the tables from the file, and measure nothing")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--eager", action="store_true", help="on a GPU: kernel by kernel, instead of graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if unknown := [name for name in options.methods or () if name not in method_names()]:
        parser.error(f"--methods: '{unknown[0]}' is not one of {', '.join(method_names())}")
    if options.methods and "kd" not in options.methods:
        parser.error("--methods: kd is missing, of which costs are multiples")
    if options.peer and not (options.peer / "train_student.py").is_file():
        parser.error(f"--peer {options.peer}: is no checkout of RepDistiller, for it has no train_student.py")
    for name, quick, whole in (("batch", 4, 64), ("steps", 1, 6), ("repeats", 1, 5)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
    if options.output is None and not options.quick:
        options.output = HERE / "bench.json"
    if options.tables and not (options.output and options.output.is_file()):
        parser.error(f"{options.output or '--output'} is not there: measure first (make bench)")
    return options


if __name__ == "__main__":
    main()
