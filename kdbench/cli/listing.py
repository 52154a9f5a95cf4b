"""`kdbench list`: methods, models, data sets, protocols, suites, tables, teachers and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.networks import networks
from kdbench.catalogue.tables import layouts
from kdbench.catalogue.terms import costs, term, term_names
from kdbench.catalogue.text import normalise, one_line, printable
from kdbench.cli.options import Json, Results
from kdbench.cli.tables import table
from kdbench.errors import BadRecord
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.methods import formula
from kdbench.suite.protocol import bundled_protocol, protocol_names
from kdbench.suite.specs import RunSpec, stage_from, stage_label


if TYPE_CHECKING:
    from kdbench.catalogue.terms import TermInfo
    from kdbench.store.record import Record, Result
    from kdbench.suite.methods import Terms


Lines = list[dict[str, Any]]


class Kind(StrEnum):
    """Kinds of things that can be listed."""

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
    """List methods, models, datasets, protocols, suites, tables, teachers or runs."""
    lines = _LISTS[kind](results)
    if json_output:
        typer.echo(json.dumps(lines, indent=1))
        return
    if not lines:
        typer.echo(printable(f"no {kind.value} in {results}"))
        return
    shown = table_rows(lines) if kind is Kind.methods else lines
    if kind in (Kind.teachers, Kind.runs):
        shown = [{key: one_line(str(value)) for key, value in line.items()} for line in lines]
    typer.echo(table(shown, _OPTIONAL.get(kind, ())))


_OPTIONAL = {
    Kind.methods: ("first", "paper"),
    Kind.models: ("feature maps", "embedding"),
    Kind.protocols: ("trials", "batch"),
    Kind.runs: ("dataset", "trial"),
}
"""Columns that a narrow terminal leaves out."""


def _models(_: Path) -> Lines:

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

    return [
        {"dataset": d.name, "classes": d.classes, "size": d.size, "train": d.train, "test": d.test, "": d.summary}
        for d in datasets().values()
    ]


def _protocols(_: Path) -> Lines:

    protocols = {name: bundled_protocol(name) for name in protocol_names()}
    return [
        {
            "protocol": name,
            "": p.title,
            "epochs": p.epochs,
            "batch": p.batch,
            "lr": p.lr,
            "score": p.score,
            "trials": p.trials,
            "methods": " ".join(p.terms),
        }
        for name, p in protocols.items()
    ]


def _suites(_: Path) -> Lines:

    loaded = {name: load_suite(path) for name, path in bundled_suites().items()}
    return [{"suite": name, "runs": len(suite.specs), "": suite.description} for name, suite in loaded.items()]


def _tables(_: Path) -> Lines:

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

    return [
        {"id": record.id, **(_teacher(record) if kind == "teachers" else _run(record)), **_outcome(record)}
        for record in Store(results).records(kind)
    ]


def _run(record: Record) -> dict[str, Any]:

    try:
        spec = RunSpec.model_validate(record.spec())
    except ValidationError:
        return {"student": "(spec.json cannot be read)", "teacher": "", "loss": "", "trial": "", "dataset": ""}
    teacher = spec.teacher.network if spec.teacher else ""
    loss, dataset = formula(spec.terms), spec.dataset.name
    return {"student": spec.student, "teacher": teacher, "loss": loss, "trial": spec.trial, "dataset": dataset}


def _teacher(record: Record) -> dict[str, Any]:

    try:
        spec = stage_from(record.spec())
    except ValidationError:
        return {"teacher": "(spec.json cannot be read)"}
    return {"teacher": stage_label(spec)}


def _outcome(record: Record) -> dict[str, Any]:

    status, accuracy = "in training" if record.has_checkpoint() else "not finished", ""
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


PAPERS = ("crd", "sskd", "semckd", "ega")
"""The protocols of papers, whose weights are listed."""


def method_lines() -> list[dict[str, Any]]:
    """Each method with its measured cost and its weights in the papers' protocols, for programs."""

    lines = []
    for name in term_names():
        info, cost, under = term(name), costs().of(name), _methods_with(name)
        chosen = {p: _representative(name, under[p]) for p in PAPERS if under.get(p)}
        weights = {p: next(use.weight for use in terms if use.name == name) for p, (_, terms) in chosen.items()}
        lines.append(
            {
                "method": name,
                "summary": info.summary,
                "paper": info.paper,
                "reads": info.reads,
                "stages": _stages(info),
                "parameters": cost.parameters if cost else None,
                "time": cost.time if cost else None,
                "memory": cost.memory if cost else None,
                "weights": weights,
                "losses": {p: {m: formula(terms) for m, terms in under[p].items()} for p in chosen},
            }
        )
    return lines


def table_rows(lines: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The same for a table.

    "first" is what is trained before the main training, "trains" how many parameters are trained beside the student's.
    """
    rows = []
    for line in lines:
        measured = line["time"] is not None
        rows.append(
            {
                "method": line["method"],
                "paper": short_citation(line["paper"]),
                "reads": line["reads"],
                "first": line["stages"],
                "trains": _count(line["parameters"]) if measured else "",
                "× kd": f"{line['time']:.2f}" if measured else "",
                **{p: f"{line['weights'][p]:g}" if p in line["weights"] else "" for p in PAPERS},
            }
        )
    return rows


def _count(number: int) -> str:
    """A number of parameters, short."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} k" if number < 1e6 else f"{number / 1e6:.1f} M"


def short_citation(paper: str) -> str:
    """First author, venue and year of "A, B. Title. Venue Year"; of two papers the first."""
    authors, _, rest = paper.partition("; ")[0].partition(". ")
    first, *others = authors.split(", ")
    return f"{first}{' et al.' if others else ''}, {rest.rpartition('. ')[2]}" if rest else paper


def method_page(name: str) -> str:
    """A method in full: what its source says, its hyper-parameters, what the protocols make of it, and its cost."""

    info, cost = term(name), costs().of(name)
    options = [f"  {key}: {h.annotation} = {h.default!r}" for key, h in info.hyperparameters.items()]
    under = _methods_with(name)
    chosen = {p: _representative(name, methods) for p, methods in under.items()}
    weights = [f"  {p}: {formula(terms)}" + _called(method, name) for p, (method, terms) in chosen.items()]
    variants = [
        f"  {p}: {method} = {formula(terms)}" + _step(method)
        for p, methods in under.items()
        for method, terms in methods.items()
        if name not in ("ce", "kd") and method != chosen[p][0]
    ]
    lines = [f"method {name}", "", info.description, "", f"Paper: {info.paper}", f"Reads: {info.reads}"]
    lines += [f"Stages before the main training: {_stages(info) or 'none'}"]
    lines += ["", "Hyper-parameters:", *(options or ["  none"]), "", "Under the protocols:", *(weights or ["  none"])]
    lines += ["", "Variants and sums in the protocols:", *variants] if variants else []
    if cost:
        lines += ["", f"Cost of a step: {cost.time:.2f} × the time and {cost.memory:.2f} × the memory of kd's"]
        lines += [f"It trains {cost.parameters:,} parameters beside the student's", f"Measured: {costs().how(cost)}"]
    return "\n".join(lines)


def _methods_with(name: str) -> dict[str, dict[str, Terms]]:
    """The methods of each protocol that contain a term."""

    every = {p: bundled_protocol(p).terms for p in protocol_names()}
    found = {
        p: {method: terms for method, terms in methods.items() if any(use.name == name for use in terms)}
        for p, methods in every.items()
    }
    return {p: methods for p, methods in found.items() if methods}


def _representative(name: str, methods: dict[str, Terms]) -> tuple[str, Terms]:
    """The method that represents a term: the one of the same name, else the first that contains it."""

    return next((each for each in methods.items() if normalise(each[0]) == name), next(iter(methods.items())))


def _stages(info: TermInfo) -> str:
    if info.initial:
        return f"initial, {info.initial_epochs({})} epochs"
    if info.auxiliary:
        return f"auxiliary, by {info.auxiliary}"
    return "part on the teacher" if info.part is not None else ""


def _called(method: str, name: str) -> str:

    return "" if normalise(method) == name else f"   (as the method '{method}')"


def _step(method: str) -> str:

    cost = costs().of(method)
    return f"   (step: {cost.time:.2f} × time, {cost.memory:.2f} × memory)" if cost else ""
