"""One HTML page that needs nothing else: tables, curves, costs, statistics, machines, and how to get them again."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from statistics import fmean
from typing import Any

import pandas as pd

from kdbench import __version__
from kdbench.catalogue import palette
from kdbench.reporting.captions import environments, latest, sources
from kdbench.reporting.cells import measured_text
from kdbench.reporting.keys import (
    CELL,
    GROUP,
    KEY,
    Group,
    Pair,
    grouped,
    pair_text,
    records,
    split_method,
    titles,
    tuples,
)
from kdbench.reporting.observations import Status
from kdbench.reporting.options import ReportOptions, View
from kdbench.reporting.paired_tests import ALPHA
from kdbench.reporting.paper_tables import PaperTable, render_paper
from kdbench.reporting.rendered import Row, plain
from kdbench.reporting.report import Report
from kdbench.reporting.statistics import Statistics
from kdbench.reporting.statistics_tables import all_statistics_tables, p_text
from kdbench.reporting.tables import GridTable
from kdbench.store.record import Record
from kdbench.store.result import compute_of
from kdbench.store.store import Store
from kdbench.suite.components import Recipe
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import RunSpec
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class FinishedRun:
    """The record of a finished run, and its metadata, read once."""

    record: Record
    metadata: dict[str, Any]


def html(report: Report, options: ReportOptions) -> str:
    """The page as text.

    Its grid tables show all runs, also those that fill the papers' tables, which follow.
    """
    from jinja2 import Environment

    finished = _finished_runs(report.runs, report.stores)
    metadata = [each.metadata for each in finished.values() if each.metadata]
    statistics = report.statistics(options.baseline)
    worse = _worse(statistics)
    environment = Environment(autoescape=True)
    environment.filters["plain"] = plain
    return environment.from_string(_page("report.html.j2")).render(
        heading=_heading(report.suites),
        descriptions=[suite.description for suite in report.suites if suite.description],
        counts=_counts(report.runs),
        tables=_grid_views(report, options, worse),
        baselines=", ".join(dict.fromkeys(each.baseline or "" for each in statistics)) if worse else "",
        papers=[
            (render_paper(table, options.view, options.tolerance), paper_details(table)) for table in report.papers
        ],
        measurements=report.measurement_tables(options.view),
        statistics=all_statistics_tables(statistics),
        environment=environments(metadata),
        pictures={
            pair: [(each, b64encode(each.png).decode()) for each in options.pictures if each.pair == pair]
            for pair in dict.fromkeys(each.pair for each in options.pictures)
        },
        commands=options.commands,
        sources=sources(report.suites),
        latest=latest(metadata),
        version=__version__,
        data=_trusted(safe_json(page_data(report, finished))),
        colours=palette.colours(),
        style=_trusted(_page("style.css")),
        scripts=[_trusted(_page("tables.js")), _trusted(_page("charts.js"))],
    )


def _heading(suites: Sequence[Suite]) -> str:
    names = ", ".join(suite.name for suite in suites)
    return f"{names} (tiny runs)" if any(suite.tiny for suite in suites) else names or "The papers’ tables"


def _page(name: str) -> str:
    return files("kdbench.reporting").joinpath("page", name).read_text(encoding="utf-8")


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _finished_runs(runs: pd.DataFrame, stores: Sequence[Store]) -> dict[str, FinishedRun]:
    """The runs whose numbers the tables show, by id, from the store that provides them."""
    finished = {}
    for id in runs.loc[runs["status"] == "done", "run_id"].unique():
        records = [store.run(id) for store in stores]
        record = next((each for each in records if len(stores) == 1 or each.done()), None)
        if record:
            finished[id] = FinishedRun(record, record.metadata())
    return finished


def _counts(runs: pd.DataFrame) -> str:
    status = Counter(runs.drop_duplicates("run_id", keep="last")["status"])
    words: dict[Status, str] = {"done": "done", "failed": "failed", "started": "in training", "missing": "not run"}
    parts = [f"{status[key]:,} {word}" for key, word in words.items() if status[key]]
    return f"{status.total():,} runs: {', '.join(parts)}." if parts else ""


def _worse(statistics: Iterable[Statistics]) -> dict[tuple[Group, str, Pair], str]:
    """What is said of the methods that are significantly worse than the baseline, by group, method and pair."""
    return {
        (each.group, found.method, found.pair): f"significantly worse than {each.baseline}: "
        f"{found.difference.mean:+.2f}, {p_text(found.corrected)}"
        for each in statistics
        for found in each.comparisons
        if found.corrected is not None and found.corrected < ALPHA and (found.difference.mean or 0) < 0
    }


def _grid_views(
    report: Report, options: ReportOptions, worse: Mapping[tuple[Group, str, Pair], str]
) -> list[dict[str, Any]]:
    """The texts of the grid tables, ready for the template. A rendered table's last lines are the methods."""
    names = titles(table.group for table in report.all_grids)
    compare = options.view in (View.both, View.published)
    views = []
    for table in report.all_grids:
        rendered = report.grid(table, replace(options, view=View.both if compare else View.measured))
        accuracies = [table.teachers.get(teacher) for teacher, _ in table.pairs]
        cells = _cell_views(table, worse, compare=compare)
        methods = zip(table.methods, rendered.lines[-len(table.methods) :], strict=True)
        views.append(
            {
                "title": names[table.group],
                "pairs": table.pairs,
                "teachers": ["" if value is None else f"{value:.2f}" for value in accuracies] if table.teachers else [],
                "lines": [(method, _line_view(table, cells, method, line)) for method, line in methods],
                "caption": rendered.caption,
                "notes": rendered.notes,
            }
        )
    return views


def _line_view(
    table: GridTable, cells: Mapping[tuple[str, Pair], dict[str, Any]], method: str, line: Row
) -> list[dict[str, Any] | None]:
    return [
        {**cells[method, pair], "emphasis": rendered.emphasis} if (method, pair) in cells else None
        for pair, rendered in zip(table.pairs, line[1:], strict=True)
    ]


def _cell_views(
    table: GridTable, worse: Mapping[tuple[Group, str, Pair], str], *, compare: bool
) -> dict[tuple[str, Pair], dict[str, Any]]:
    views = {}
    for (method, pair), cell in zip(table.places, records(table.cells), strict=True):
        mean, _, spread = measured_text(cell["mean"], cell["sd"], cell["n"], cell["planned"]).partition(" ")
        views[method, pair] = {
            "mean": mean,
            "spread": spread,
            "published": cell["printed"] if compare else "",
            "value": _or_none(cell["mean"]),
            "worse": worse.get((table.group, method, pair), ""),
            "number": table.pairs.index(pair) * len(table.methods) + table.methods.index(method),
        }
    return views


def own_methods(suites: Iterable[Suite]) -> set[tuple[str, str]]:
    """Protocol and name of the methods that suites are about.

    These are the ones that the protocol is named after, alone or with other terms, and those that it does not know.
    """
    return {
        (run.protocol.name, run.method)
        for suite in suites
        for run in suite.runs
        if any(use.name == run.protocol.base for use in run.spec.terms)
        or split_method(run.method)[0] not in bundled_protocol(run.protocol.base).terms
    }


def page_data(report: Report, finished: Mapping[str, FinishedRun]) -> list[dict[str, Any]]:
    """The data of the page's scripts: one mapping per grid table, with its cells pair by pair.

    ``styles`` are colour, dashes (in widths of the line) and marker of each method; ``own`` are the positions of the
    methods that the suites are about. ``finished`` are by run id.
    """
    own = own_methods(report.suites)
    specs = {id: spec for suite in report.suites for id, spec in suite.specs.items()}
    names = titles(table.group for table in report.all_grids)
    by_cell = grouped(report.runs, [*GROUP, *CELL])
    points = points_per_curve(len(finished), len(by_cell))
    tables = []
    for table in report.all_grids:
        summaries = dict(zip(table.places, records(table.cells), strict=True))
        tables.append(
            {
                "title": names[table.group],
                "pairs": [pair_text(pair) for pair in table.pairs],
                "methods": table.methods,
                "styles": [
                    [style.colour, palette.dashes(style.line), style.marker]
                    for style in palette.method_styles(table.methods).values()
                ],
                "own": [at for at, method in enumerate(table.methods) if (table.group.protocol, method) in own],
                "cells": [
                    _cell(summaries[method, pair], by_cell[*table.group, method, *pair], specs, finished, points)
                    if (method, pair) in summaries
                    else None
                    for pair in table.pairs
                    for method in table.methods
                ],
            }
        )
    return tables


def _cell(
    summary: Mapping[str, Any],
    runs: pd.DataFrame,
    specs: Mapping[str, RunSpec],
    finished: Mapping[str, FinishedRun],
    points: int,
) -> dict[str, Any]:
    ids = [id for id in runs["run_id"] if id in finished]
    curves = cell_curves((finished[id].record, stride(specs[id].recipe, points)) for id in ids)
    compute = [found for id in ids if (found := compute_of(finished[id].metadata))[0]]
    trials = zip(runs["trial"].tolist(), runs["run_id"], runs["top1"].tolist(), strict=True)
    return {
        "mean": _or_none(summary["mean"]),
        "sd": _or_none(summary["sd"]),
        "planned": summary["planned"],
        "published": summary["printed"],
        "note": summary["note"],
        "trials": [[trial, id, _or_none(top1)] for trial, id, top1 in trials],
        "macs": fmean(macs for _, macs, _ in compute) if compute else None,
        "seconds": fmean(seconds for _, _, seconds in compute) if compute else None,
        "devices": sorted({kind for kind, _, _ in compute}),
        **{quantity: vars(curve) for quantity, curve in curves.items()},
    }


def _or_none(value: float) -> float | None:
    return None if value != value else value


def paper_details(table: PaperTable) -> list[str]:
    """The trials of each cell of a paper's table, in print order, line by line; "" where no run belongs to it."""
    values = grouped(table.observations, KEY)
    keys = tuples(table.cells[KEY])
    return [
        "\n".join(_detail(table.layout.id, cell, values.get(key))) if cell["printed"] and cell["planned"] else ""
        for key, cell in zip(keys, records(table.cells), strict=True)
    ]


def _detail(id: str, cell: Mapping[str, Any], values: pd.DataFrame | None) -> Iterator[str]:
    decimals = cell["decimals"]
    yield plain(f"{id}: {cell['name']}")
    numbers = [f"{name} {cell[name]:.{decimals}f}" for name in ("mean", "sd") if cell[name] == cell[name]]
    yield ", ".join([*numbers, f"n {cell['n']} of {cell['planned']}"])
    yield f"published {cell['printed']}"
    trials = [] if values is None else list(zip(values["trial"], values["value"], values["run_id"], strict=True))
    for trial, value, run_id in trials[:_TRIALS]:
        yield f"trial {trial}: {'–' if value != value else f'{value:.{decimals}f}'}  {run_id}"
    if len(trials) > _TRIALS:
        yield f"and {len(trials) - _TRIALS} more"
    if cell["note"]:
        yield plain(cell["note"])


_TRIALS = 10


def safe_json(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, ``>`` or ``&``, so nothing can close it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


QUANTITIES = ("top1", "train_error", "loss")


@dataclass(frozen=True)
class Curve:
    """A quantity by epoch, in four significant digits. ``low`` and ``high`` are empty where there is one trial."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def points_per_curve(runs: int, curves: int) -> int:
    """How many epochs of each curve are drawn, so that a page of many runs stays small and is made within seconds."""
    return max(16, min(120, 120_000 // max(1, curves), 160_000 // max(1, runs)))


def stride(recipe: Recipe, points: int) -> int:
    """Every how many epochs a curve has a point: all, or a multiple of the epochs between two tests."""
    tested = recipe.evaluate_every
    return 1 if recipe.epochs <= points else -(-recipe.epochs // (points * tested)) * tested


def cell_curves(records: Iterable[tuple[Record, int]]) -> dict[str, Curve]:
    """The curves of one cell, by quantity, from the records of its trials and each one's stride."""
    trials = [record.metrics(every=every) for record, every in records]
    curves = {quantity: _curve(trials, quantity) for quantity in QUANTITIES}
    return {quantity: curve for quantity, curve in curves.items() if curve.epochs}


def _curve(trials: Sequence[Sequence[dict[str, Any]]], quantity: str) -> Curve:
    found: defaultdict[int, list[float]] = defaultdict(list)
    for metrics in trials:
        for row in metrics:
            epoch, value = row.get("epoch"), row.get(quantity)
            if isinstance(epoch, int) and isinstance(value, (float, int)) and abs(value) < 1e9:
                found[epoch].append(value)
    epochs = sorted(found)
    several = any(len(values) > 1 for values in found.values())
    return Curve(
        epochs=epochs,
        mean=[_short(sum(found[epoch]) / len(found[epoch])) for epoch in epochs],
        low=[_short(min(found[epoch])) for epoch in epochs] if several else [],
        high=[_short(max(found[epoch])) for epoch in epochs] if several else [],
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
