"""kdbench list: what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.catalogue.printable import one_line, printable
from kdbench.cli.methods import brief, method_lines
from kdbench.cli.options import Json, Results


if TYPE_CHECKING:
    from kdbench.store.record import Record, Result


Lines = list[dict[str, Any]]


class Kind(StrEnum):
    """What can be listed."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    protocols = "protocols"
    suites = "suites"
    tables = "tables"
    teachers = "teachers"
    runs = "runs"


def list_things(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    results: Results = Path("results"),
    json_output: Json = False,
) -> None:
    """List methods, models, data sets, protocols, suites, printed tables, teachers or runs."""
    lines = _LISTS[kind](results)
    if json_output:
        typer.echo(json.dumps(lines, indent=1))
        return
    if not lines:
        typer.echo(printable(f"no {kind.value} in {results}"))
        return
    from tabulate import tabulate

    shown, widths = brief(lines) if kind is Kind.methods else (lines, None)
    if kind in (Kind.teachers, Kind.runs):
        shown = [{key: one_line(str(value)) for key, value in line.items()} for line in lines]
    typer.echo(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=widths))


def _models(_: Path) -> Lines:
    from kdbench.catalogue.networks import networks

    return [
        {
            "model": net.name,
            "parameters": f"{net.parameters:,}",
            "MACs at 32x32": f"{net.macs:,}" + (f" at {net.size}²" if net.size else ""),
            "embedding": net.embedding,
            "feature maps": len(net.features),
            "": net.summary,
        }
        for net in networks().values()
    ]


def _datasets(_: Path) -> Lines:
    from kdbench.catalogue.datasets import datasets

    return [
        {"dataset": d.name, "classes": d.classes, "size": d.size, "train": d.train, "test": d.test, "": d.summary}
        for d in datasets().values()
    ]


def _protocols(_: Path) -> Lines:
    from kdbench.suite.protocols import bundled_protocol, protocol_names

    protocols = {name: bundled_protocol(name) for name in protocol_names()}
    return [
        {
            "protocol": name,
            "": p.settings.title,
            "epochs": p.settings.epochs,
            "batch": p.settings.batch,
            "lr": p.settings.lr,
            "score": p.settings.score,
            "trials": p.settings.trials,
            "methods": " ".join(p.methods),
        }
        for name, p in protocols.items()
    ]


def _suites(_: Path) -> Lines:
    from kdbench.suite.load import bundled_suites, load_suite

    loaded = {name: load_suite(path) for name, path in bundled_suites().items()}
    return [{"suite": name, "runs": len(suite.specs), "": suite.description} for name, suite in loaded.items()]


def _tables(_: Path) -> Lines:
    from kdbench.report.layouts import layouts
    from kdbench.suite.load import bundled_suites, load_suite

    suites = [load_suite(path) for path in bundled_suites().values()]
    return [
        {
            "table": id,
            "cells": len(list(layout.places)),
            "suite": " ".join(suite.name for suite in suites if id in suite.tables),
            "": layout.title,
        }
        for id, layout in layouts().tables.items()
    ]


def _records(results: Path, kind: str) -> Lines:
    from kdbench.store.store import Store

    return [
        {"id": record.id, **(_teacher(record) if kind == "teachers" else _run(record)), **_outcome(record)}
        for record in Store(results).records(kind)
    ]


def _run(record: Record) -> dict[str, Any]:
    from pydantic import ValidationError

    from kdbench.suite.methods import formula
    from kdbench.suite.specs import RunSpec

    try:
        spec = RunSpec.model_validate(record.spec())
    except ValidationError:
        return {"student": "(spec.json cannot be read)", "teacher": "", "loss": "", "trial": "", "dataset": ""}
    teacher = spec.teacher.network if spec.teacher else ""
    loss, dataset = formula(spec.terms), spec.dataset.name
    return {"student": spec.student, "teacher": teacher, "loss": loss, "trial": spec.trial, "dataset": dataset}


def _teacher(record: Record) -> dict[str, Any]:
    from pydantic import ValidationError

    from kdbench.suite.specs import TeacherSpec

    try:
        spec = TeacherSpec.model_validate(record.spec())
    except ValidationError:
        return {"teacher": "(spec.json cannot be read)"}
    return {"teacher": spec.label}


def _outcome(record: Record) -> dict[str, Any]:
    from kdbench.errors import BadRecord

    status, accuracy = "in training" if record.started() else "not finished", ""
    try:
        if result := record.result():
            status, accuracy = "done", _accuracies(result)
        elif failure := record.failure():
            status = f"failed: {failure.reason}"
    except BadRecord as error:
        status = f"damaged: {error}"
    return {"status": status, "last / best": accuracy}


def _accuracies(result: Result) -> str:
    """Last and best accuracy; how they came about where not by the network's own classifier."""
    if result.last is None or result.best is None:
        return "–"
    how = " (neighbours)" if result.measure == "neighbours" else ""
    stated = f" ({result.published_top1:.2f} stated)" if result.published_top1 is not None else ""
    return f"{result.last.top1:.2f} / {result.best.top1:.2f}{how}{stated}"


_LISTS: dict[Kind, Callable[[Path], Lines]] = {
    Kind.methods: lambda _: method_lines(),
    Kind.models: _models,
    Kind.datasets: _datasets,
    Kind.protocols: _protocols,
    Kind.suites: _suites,
    Kind.tables: _tables,
    Kind.teachers: lambda results: _records(results, "teachers"),
    Kind.runs: lambda results: _records(results, "runs"),
}
