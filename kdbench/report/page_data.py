"""What the HTML report's scripts read: for each pair of a table its cells' trials, curves and costs, as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from kdbench.report.curves import cell_curves, points_per_curve, stride
from kdbench.report.rows import Row
from kdbench.report.samples import Key, key_of
from kdbench.report.statistics_sheets import pair_text
from kdbench.report.tables import Pair, Table
from kdbench.store.record import Record
from kdbench.suite.specs import RunSpec


def page_data(
    tables: Sequence[Table], rows: Sequence[Row], specs: Mapping[str, RunSpec], records: Mapping[str, Record]
) -> list[dict[str, Any]]:
    """One mapping per table: title, pairs, methods, and the cells in the order of ``cell_number``.

    ``specs`` and ``records`` are by run id; a record is there where something has been trained.
    """
    members: dict[tuple[Key, str, Pair], list[Row]] = {}
    for row in rows:
        key = (row.suite, row.protocol, row.dataset, row.scenario, row.strategy)
        members.setdefault((key, row.method, (row.teacher, row.student)), []).append(row)
    points = points_per_curve(len(records), len(members))
    return [
        {
            "title": table.title,
            "pairs": [pair_text(pair) for pair in table.pairs],
            "methods": table.methods,
            "cells": [
                _cell(table, method, pair, members.get((key_of(table), method, pair), []), specs, records, points)
                for pair in table.pairs
                for method in table.methods
            ],
        }
        for table in tables
    ]


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
    records: Mapping[str, Record],
    points: int,
) -> dict[str, Any] | None:
    cell = table.cells.get((method, pair))
    if cell is None:
        return None
    found = [(records[row.run_id], stride(specs[row.run_id].recipe, points)) for row in rows if row.run_id in records]
    curves = {quantity: asdict(curve) for quantity, curve in cell_curves(found).items()}
    work = [done for record, _ in found if (done := record.work())[0]]
    return {
        "mean": cell.mean,
        "sd": cell.sd,
        "planned": cell.planned,
        "published": cell.published or "",
        "note": cell.note,
        "trials": [[row.trial, row.run_id, row.top1] for row in rows],
        "macs": fmean(macs for _, macs, _ in work) if work else None,
        "seconds": fmean(seconds for _, _, seconds in work) if work else None,
        "devices": sorted({kind for kind, _, _ in work}),
        **curves,
    }
