"""Record what about ninety report commands print, to compare two versions of the code byte by byte.

    python benchmarks/reports.py make FOLDER          two results folders, A and B, of all bundled suites with random numbers
    python benchmarks/reports.py record FOLDER OUT    the output of each command on them, one file each

Run `make` once, `record` with either version of the code, then `diff -r` on the two outputs.
"""

import contextlib
import io
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.cli.app import app
from kdbench.errors import KdbenchError
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suites
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import digest
from kdbench.suite.suite import Suite


FORMATS = ("terminal", "markdown", "latex", "csv", "json", "html")
READABLE = ("terminal", "markdown", "latex", "html")
A, B, THREE = ("--results", "A"), ("--results", "B"), ("--trials", "3")


def make(folder: Path):
    """Two results folders; some teachers differ between them."""
    suites = load_suites(list(bundled_suites()), 3)
    for name, share in (("A", 0.85), ("B", 0.5)):
        make_results(Store(folder / name), suites, share)


def make_results(store: Store, suites: Sequence[Suite], share: float) -> int:
    """Random records of all runs of suites: a share is done; others failed, are in training, or damaged. Returns how many."""
    name = store.root.name
    runs = {run.id: run for suite in suites for run in suite.runs}
    for id, run in runs.items():
        make_run(store.run(id), run, random.Random(id + name), share)
    for id in {stage.id for suite in suites for spec in suite.specs.values() for stage in spec.stages}:
        same = random.Random(id)
        source = same if same.random() < 0.7 else random.Random(id + name)
        sha256 = digest(str(source.random()))
        finish(store.teacher(id), "teacher", last=accuracy(source), best=accuracy(source), weights_sha256=sha256)
    for id, spec in {each.spec.id: each.spec for suite in suites for each in suite.measurements}.items():
        source = random.Random(id + name)
        if source.random() < 0.8:
            make_measurement(store.measurement(id), spec, source)
    return len(runs)


def make_run(record, run, source, share):
    state = source.random() / share
    if state < 1:
        middle = 70 + random.Random(run.method + run.spec.student).uniform(-3, 4)
        extra = {"teacher": accuracy(source)} if run.strategy == "simultaneous" else {}
        extra |= {"sm_score": source.random(), "layer_cka": source.random()} if "semckd" in run.method else {}
        record.write_metrics(
            [{"epoch": e, "loss": 2 / e, "terms": {}, "top1": e * source.random()} for e in range(1, 9)]
        )
        finish(
            record, "run", last=accuracy(source, middle), best=accuracy(source, middle + 1), weights_sha256="", **extra
        )
    elif state < 1.05:
        record.fail(Failure(kind="diverged", epoch=3, reason="loss is nan"))
    elif state < 1.1:
        record.write_metrics([{"epoch": 1}])
        record.state_file.write_bytes(b"")
    elif state < 1.12:
        record.begin(run.spec.canonical())
        (record.folder / "result.json").write_text("{")


def make_measurement(record, spec, source):
    if isinstance(spec, ProbeSpec):
        finish(record, "measurement", last=accuracy(source), best=accuracy(source), weights_sha256="")
        return
    values = {name: source.random() for name in ("kl_t4", "kl_t1", "cka", "class_correlation_difference")}
    if source.random() < 0.2:
        del values["cka"]
    finish(record, "measurement", values=values, weights_sha256="")


def finish(record, kind, **result):
    versions = {"kdbench": "0.2.0", "torch": "2.9", "numpy": "2.1", "python": "3.12"}
    device = {"kind": "cpu", "name": "A card", "threads": 2}
    metadata = {
        "finished": "2026-01-02T03:04:05Z",
        "seconds": 60.0,
        "macs": 5e12,
        "versions": versions,
        "device": device,
    }
    record.finish(Result(id=record.id, kind=kind, **result), metadata)


def accuracy(source, middle=75.0):
    top1 = round(min(99.0, source.gauss(middle, 1.5)), 2)
    return Accuracy(epoch=source.randrange(1, 240), top1=top1, top5=round(source.uniform(85, 99), 2))


def commands():
    """Name and arguments of each command; those of a name that begins with `colour` are for a terminal."""
    some = ("semckd_cifar100", "crd_similar", "ega_simultaneous")
    for format in FORMATS:
        to = ("-f", format)
        yield f"all-{format}", ("report", *A, *THREE, *to)
        yield f"published-{format}", ("report", "--published", *to)
        yield f"two-{format}", ("report", *some, *A, *B, *THREE, *to)
        yield f"none-{format}", ("report", "crd_similar", "--results", "C", *to)
        tables = ("--table", "ega-1", "--table", "semckd-2", "--table", "sskd-6")
        yield f"table-{format}", ("report", *A, *tables, *THREE, *to)
        yield (
            f"only-{format}",
            ("report", "semckd_few_shot", "sskd_transfer", *A, "--only", "method=kd,at,ce", *THREE, *to),
        )
        if format != "html":
            yield f"compare-{format}", ("compare", "A", "B", *THREE, *to)
        if format not in ("csv", "html"):
            yield f"statistics-{format}", ("report", *some, *A, *THREE, "--statistics", *to)
    for format in READABLE:
        to = ("-f", format)
        for view in ("measured", "published", "difference", "verdict"):
            mixed = ("semckd_cifar100", "sskd_transfer", "ega_weights", "demo")
            yield f"view-{view}-{format}", ("report", *mixed, *A, *THREE, "--view", view, *to)
        yield f"bold-{format}", ("report", *some, *A, *THREE, "--bold", "separable", *to)
    yield "published-csv-of-a-suite", ("report", "semckd_cifar100", *A, "--view", "published", "-f", "csv")
    yield "tolerance", ("report", *some, *A, "--view", "verdict", "--tolerance", "1.5")
    yield "tolerance-json", ("report", *some, *A, "-f", "json", "--tolerance", "1.5")
    yield "standalone", ("report", *some, *A, "-f", "latex", "--standalone", "--statistics")
    yield "statistics-all", ("report", *A, *THREE, "--statistics")
    yield "statistics-two", ("report", *B, *A, *THREE, "--statistics", "--bold", "separable")
    yield "statistics-two-json", ("report", *A, *B, *THREE, "--statistics", "-f", "json")
    yield "one-trial", ("report", "crd_similar", *A, "--statistics", "--trials", "1")
    yield "baseline", ("report", "semckd_cifar100", *A, *THREE, "--baseline", "semckd")
    yield "unknown-baseline", ("report", "demo", *A, "--baseline", "kdd")
    yield from ((f"show-{table}", ("show", table)) for table in ("ega-1", "sskd-S1", "semckd-9"))
    yield "colour-all", ("report", *A, *THREE)
    yield "colour-statistics", ("report", *some, *A, *THREE, "--statistics", "--bold", "separable")
    yield "colour-published", ("report", "--published")
    yield "colour-compare", ("compare", "A", "B", "crd_similar", *THREE)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def record(folder: Path, out: Path):
    """Run the commands in ``folder``; what each prints, its errors and its end are written to a file of its name."""
    out = out.absolute()
    out.mkdir(parents=True)
    (folder / "C").mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    for name, arguments in commands():
        content, errors = io.BytesIO(), io.StringIO()
        kind = Terminal if name.startswith("colour") else io.TextIOWrapper
        stream = kind(content, encoding="utf-8", write_through=True)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(errors):
            try:
                app(list(arguments), standalone_mode=False)
            except KdbenchError as error:
                print(error, file=errors)
        (out / name).write_bytes(content.getvalue() + f"\n--- errors\n{errors.getvalue()}".encode())


if __name__ == "__main__":
    {"make": make, "record": record}[sys.argv[1]](*map(Path, sys.argv[2:]))
