"""What the HTML report's scripts read: for each pair of a table its cells' trials, curves and costs, as plain JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdbench.catalogue.tables import Place
from kdbench.report.cells import Cell
from kdbench.report.observations import Fact, Row, by_key
from kdbench.report.published import Group, Pair, pair_text, split_method, titles
from kdbench.report.sheet import plain
from kdbench.report.tables import PrintedTable, Table
from kdbench.store.record import Record, compute_of
from kdbench.suite.components import Recipe
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import RunSpec
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class Trained:
    """The record of a finished run, and its metadata.json, read once."""

    record: Record
    about: dict[str, Any]


def own_methods(suites: Iterable[Suite]) -> set[tuple[str, str]]:
    """Protocol and name of the methods whose suites are about them.

    These are the ones that the protocol is named after, alone or with other terms, and those that it does not know.
    """
    return {
        (run.protocol.name, run.method)
        for suite in suites
        for run in suite.runs
        if any(use.name == run.protocol.base for use in run.spec.terms)
        or split_method(run.method)[0] not in bundled_protocol(run.protocol.base).terms
    }


def page_data(
    tables: Sequence[Table],
    rows: Sequence[Row],
    specs: Mapping[str, RunSpec],
    trained: Mapping[str, Trained],
    own: Collection[tuple[str, str]],
) -> list[dict[str, Any]]:
    """One mapping per table: title, pairs, methods, ``own_methods`` by place, and the cells in the order of ``cell_number``.

    ``specs`` and ``trained`` are by run id; of a run without a value there is nothing in ``trained``.
    """
    members: dict[tuple[Group, str, Pair], list[Row]] = {}
    for row in rows:
        members.setdefault((row.group, row.method, row.pair), []).append(row)
    names = titles(table.group for table in tables)
    points = points_per_curve(len(trained), len(members))
    return [
        {
            "title": names[table.group],
            "pairs": [pair_text(pair) for pair in table.pairs],
            "methods": table.methods,
            "own": [at for at, method in enumerate(table.methods) if (table.group.protocol, method) in own],
            "cells": [
                _cell(table, method, pair, members.get((table.group, method, pair), []), specs, trained, points)
                for pair in table.pairs
                for method in table.methods
            ],
        }
        for table in tables
    ]


def printed_details(table: PrintedTable) -> list[str]:
    """What stands behind each cell of a paper's table, in print order, line by line; "" where no run belongs to it."""
    measured = by_key(table.facts)
    return [
        "\n".join(_detail(place, cell, measured.get(cell.published.key, ()))) if cell.published and cell.planned else ""
        for place, cell in table.cells.items()
    ]


def _detail(place: Place, cell: Cell, facts: Sequence[Fact]) -> Iterator[str]:
    decimals = place.decimals
    yield plain(f"{place.layout.id}: {place.name}")
    parts = [f"mean {cell.mean:.{decimals}f}"] if cell.mean is not None else []
    parts += [f"sd {cell.sd:.{decimals}f}"] if cell.sd is not None else []
    yield ", ".join([*parts, f"n {cell.n} of {cell.planned}"])
    if cell.published:
        yield f"published {cell.published.text}"
    for fact in facts[:_TRIALS]:
        yield f"trial {fact.trial}: {'–' if fact.value is None else f'{fact.value:.{decimals}f}'}  {fact.run_id}"
    if len(facts) > _TRIALS:
        yield f"and {len(facts) - _TRIALS} more"
    if cell.note:
        yield plain(cell.note)


_TRIALS = 10


def cell_number(table: Table, method: str, pair: Pair) -> int:
    """The place of a cell in its table's list."""
    return table.pairs.index(pair) * len(table.methods) + table.methods.index(method)


def safe_json(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, ``>`` or ``&``, so nothing can close it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cell(
    table: Table,
    method: str,
    pair: Pair,
    rows: Sequence[Row],
    specs: Mapping[str, RunSpec],
    trained: Mapping[str, Trained],
    points: int,
) -> dict[str, Any] | None:
    cell = table.cells.get((method, pair))
    if cell is None:
        return None
    found = [trained[row.run_id] for row in rows if row.run_id in trained]
    strides = [stride(specs[row.run_id].recipe, points) for row in rows if row.run_id in trained]
    curves = cell_curves(zip((each.record for each in found), strides, strict=True))
    work = [done for each in found if (done := compute_of(each.about))[0]]
    return {
        "mean": cell.mean,
        "sd": cell.sd,
        "planned": cell.planned,
        "published": cell.published.text if cell.published else "",
        "note": cell.note,
        "trials": [[row.trial, row.run_id, row.top1] for row in rows],
        "macs": fmean(macs for _, macs, _ in work) if work else None,
        "seconds": fmean(seconds for _, _, seconds in work) if work else None,
        "devices": sorted({kind for kind, _, _ in work}),
        **{quantity: vars(curve) for quantity, curve in curves.items()},
    }


QUANTITIES = ("top1", "loss")


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
