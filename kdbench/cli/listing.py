"""`kdbench list`: methods, models, data sets, protocols, suites, tables, figures, teachers and runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.networks import networks
from kdbench.catalogue.pictures import paper_figures
from kdbench.catalogue.tables import layouts
from kdbench.catalogue.terms import TermInfo, costs, term, term_names
from kdbench.catalogue.text import normalise, one_line, printable
from kdbench.cli.options import Json, Results
from kdbench.errors import BadRecord
from kdbench.store.record import Record
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.methods import Terms, formula
from kdbench.suite.networks import info, network_named, short_names
from kdbench.suite.protocol import bundled_protocol, protocol_names
from kdbench.suite.specs import RunSpec, stage_from, stage_label


Lines = list[dict[str, Any]]


Kind = StrEnum("Kind", "methods models datasets protocols suites tables figures teachers runs")
"""Kinds of things that can be listed."""


def list_things(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    results: Results = Path("results"),
    json_output: Json = False,
) -> None:
    """List methods, models, datasets, protocols, suites, tables, figures, teachers or runs."""
    stored = kind in (Kind.teachers, Kind.runs)
    lines = _records(results, kind) if stored else _CATALOGUE[kind]()
    if json_output:
        typer.echo(json.dumps(lines, indent=1))
        return
    if not lines:
        typer.echo(printable(f"no {kind.value} in {results}"))
        return
    if kind is Kind.methods:
        lines = _method_rows(lines)
    if stored:
        lines = [{key: one_line(str(value)) for key, value in line.items()} for line in lines]
    typer.echo(table(lines, _OPTIONAL.get(kind, ())))


_OPTIONAL = {
    Kind.methods: ("first", "paper"),
    Kind.models: ("feature maps", "embedding"),
    Kind.protocols: ("trials", "batch"),
    Kind.runs: ("dataset", "trial"),
}
"""Columns that a narrow terminal leaves out."""


def _models() -> Lines:
    external = [
        info(spec) for name, entry in short_names().items() if "macs" in entry and (spec := network_named(name))
    ]
    return [
        {
            "model": net.name,
            "parameters": f"{net.parameters:,}",
            "MACs at 32x32": f"{net.macs:,}" + (f" at {net.size}²" if net.size else ""),
            "embedding": net.embedding,
            "feature maps": len(net.features),
            "": net.summary,
        }
        for net in (*networks().values(), *external)
    ]


def _datasets() -> Lines:
    return [
        {"dataset": d.name, "classes": d.classes, "size": d.size, "train": d.train, "test": d.test, "": d.summary}
        for d in datasets().values()
    ]


def _protocols() -> Lines:
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


def _suites() -> Lines:
    suites = {name: load_suite(path) for name, path in bundled_suites().items()}
    return [{"suite": name, "runs": len(suite.specs), "": suite.description} for name, suite in suites.items()]


def _tables() -> Lines:
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


def _figures() -> Lines:
    return [
        {"figure": name, "kind": figure.kind, "suite": " ".join(figure.suites), "": figure.title}
        for name, figure in paper_figures().items()
    ]


def _records(results: Path, kind: Kind) -> Lines:
    describe = _run if kind is Kind.runs else _teacher
    return [{"id": record.id, **describe(record), **_outcome(record)} for record in Store(results).records(kind)]


def _run(record: Record) -> dict[str, Any]:
    try:
        spec = RunSpec.model_validate(record.spec())
    except ValidationError:
        return {"student": "(spec.json cannot be read)", "teacher": "", "loss": "", "trial": "", "dataset": ""}
    teacher = str(spec.teacher.network) if spec.teacher else ""
    loss, dataset = formula(spec.terms), spec.dataset.name
    return {"student": str(spec.student), "teacher": teacher, "loss": loss, "trial": spec.trial, "dataset": dataset}


def _teacher(record: Record) -> dict[str, Any]:
    try:
        return {"teacher": stage_label(stage_from(record.spec()))}
    except ValidationError:
        return {"teacher": "(spec.json cannot be read)"}


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
    stated += f" ({result.published_best:.2f} stated as best)" if result.published_best is not None else ""
    return f"{result.last.top1:.2f} / {result.best.top1:.2f}{how}{stated}"


PAPERS = ("crd", "sskd", "semckd", "ega")
"""The protocols of papers, whose weights are listed."""


def _methods() -> Lines:
    """Each method with its measured cost and its weights in the papers' protocols, for programs."""
    lines = []
    for name in term_names():
        info, cost, methods = term(name), costs().of(name), methods_with(name)
        chosen = {p: representative(name, methods[p]) for p in PAPERS if p in methods}
        weights = {p: next(use.weight for use in terms if use.name == name) for p, (_, terms) in chosen.items()}
        lines.append(
            {
                "method": name,
                "summary": info.summary,
                "paper": info.paper,
                "reads": info.reads,
                "stages": stages(info),
                "parameters": cost.parameters if cost else None,
                "time": cost.time if cost else None,
                "memory": cost.memory if cost else None,
                "weights": weights,
                "losses": {p: {m: formula(terms) for m, terms in methods[p].items()} for p in chosen},
            }
        )
    return lines


def _method_rows(lines: Lines) -> Lines:
    """The same for a table.

    "first" is what is trained before the main training, "trains" how many parameters are trained beside the student's.
    """
    return [
        {
            "method": line["method"],
            "paper": _short_citation(line["paper"]),
            "reads": line["reads"],
            "first": line["stages"],
            "trains": "" if line["parameters"] is None else _count(line["parameters"]),
            "× kd": "" if line["time"] is None else f"{line['time']:.2f}",
            **{p: f"{line['weights'][p]:g}" if p in line["weights"] else "" for p in PAPERS},
        }
        for line in lines
    ]


def _count(number: int) -> str:
    """A number of parameters, short."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} k" if number < 1e6 else f"{number / 1e6:.1f} M"


def _short_citation(paper: str) -> str:
    """First author, venue and year of "A, B. Title. Venue Year"; of two papers the first."""
    authors, _, rest = paper.partition("; ")[0].partition(". ")
    first, *others = authors.split(", ")
    return f"{first}{' et al.' if others else ''}, {rest.rpartition('. ')[2]}" if rest else paper


_CATALOGUE: dict[Kind, Callable[[], Lines]] = {
    Kind.methods: _methods,
    Kind.models: _models,
    Kind.datasets: _datasets,
    Kind.protocols: _protocols,
    Kind.suites: _suites,
    Kind.tables: _tables,
    Kind.figures: _figures,
}


def methods_with(name: str) -> dict[str, dict[str, Terms]]:
    """The methods that contain a term, by protocol; only protocols that have one."""
    every = {p: bundled_protocol(p).terms for p in protocol_names()}
    methods = {
        p: {method: terms for method, terms in methods.items() if any(use.name == name for use in terms)}
        for p, methods in every.items()
    }
    return {p: chosen for p, chosen in methods.items() if chosen}


def representative(name: str, methods: Mapping[str, Terms]) -> tuple[str, Terms]:
    """The method that represents a term: the one of the same name, else the first that contains it."""
    return next((item for item in methods.items() if normalise(item[0]) == name), next(iter(methods.items())))


def stages(info: TermInfo) -> str:
    """What a method trains before the main training; "" for nothing."""
    if info.initial:
        return f"initial, {info.initial_epochs({})} epochs"
    if info.auxiliary:
        return f"auxiliary, by {info.auxiliary}"
    return "part on the teacher" if info.part is not None else ""


GAP = "  "
BREAKABLE = 16
"""Characters of a word that may be broken."""


def table(rows: Sequence[Mapping[str, Any]], optional: Collection[str] = ()) -> str:
    """Rows under the keys of the first, as wide as the terminal, or 80 columns without one.

    Long cells are wrapped. Where that is not enough, ``optional`` columns are left out, the first one first.
    """
    room = shutil.get_terminal_size((80, 24)).columns
    columns = {key: [key, *(str(row.get(key, "")) for row in rows)] for key in rows[0]}
    least = {key: _longest_word(column) for key, column in columns.items()}
    for key in optional:
        if _total(least.values()) > room:
            del columns[key], least[key]
    widths = {key: max(map(len, column)) for key, column in columns.items()}
    while _total(widths.values()) > room and (wide := [key for key in widths if widths[key] > least[key]]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    header, *body = ([*_lines(row, [*widths.values()])] for row in zip(*columns.values(), strict=True))
    rule = GAP.join("-" * width for width in widths.values())
    return "\n".join([*header, rule, *(line for lines in body for line in lines)])


def _longest_word(column: Sequence[str]) -> int:
    """The least width of a column: numbers stay on one line, and very long words may be broken."""
    words = (word for text in column for word in (text.split() if re.search("[a-z]", text) else [text]))
    return min(BREAKABLE, max(map(len, words), default=0))


def _total(widths: Collection[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    cells = [
        [text] if len(text) <= width else wrap(text, width, break_on_hyphens=False)
        for text, width in zip(row, widths, strict=True)
    ]
    for parts in zip_longest(*cells, fillvalue=""):
        yield GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
