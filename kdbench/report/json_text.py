"""Runs, tidy values and tables' cells as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from kdbench.report.analysis import Analysis
from kdbench.report.assemble import Report
from kdbench.report.cells import Cell


def json_text(report: Report, tolerance: float, statistics: Analysis | None = None) -> str:
    """The runs (accuracies after the last and the best epoch), the values, the cells of all tables, and statistics."""
    content: dict[str, Any] = {
        "runs": [vars(row) for row in report.rows],
        "facts": [fact._asdict() for fact in report.facts],
        "cells": [*_printed(report, tolerance), *_generic(report, tolerance), *_measured(report, tolerance)],
    }
    if statistics:
        content["statistics"] = statistics.json()
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _printed(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.printed:
        for place, cell in table.cells.items():
            key = cell.published.key._asdict() if cell.published else {}
            yield {"table": table.layout.id, "cell": place.name, **key, **_values(cell, tolerance)}


def _generic(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.tables:
        setting = {
            key: getattr(table, key) for key in ("suite", "protocol", "dataset", "scenario", "strategy", "score")
        }
        for (method, (teacher, student)), cell in table.cells.items():
            yield {**setting, "method": method, "teacher": teacher, "student": student, **_values(cell, tolerance)}


def _measured(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.measurements:
        setting = {key: getattr(table, key) for key in ("protocol", "teacher", "strategy")}
        for (method, (dataset, metric)), cell in table.cells.items():
            yield {**setting, "method": method, "dataset": dataset, "metric": metric, **_values(cell, tolerance)}


def _values(cell: Cell, tolerance: float) -> dict[str, Any]:
    number = cell.published
    return {
        **{key: getattr(cell, key) for key in ("mean", "sd", "n", "planned", "note")},
        "published": {key: value for key, value in asdict(number).items() if key != "key"} if number else None,
        "difference": cell.difference,
        "verdict": cell.verdict(tolerance),
    }
