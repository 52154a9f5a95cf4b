"""Reports and comparisons for programs: CSV with one line for each value or cell, and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from kdbench.catalogue.text import printable
from kdbench.report.assemble import Analysis, Report
from kdbench.report.cells import Cell
from kdbench.report.comparison import Comparison
from kdbench.report.observations import Fact, Row
from kdbench.report.published import Key
from kdbench.report.tables import PrintedTable


COLUMNS = (Key._fields[0], Fact._fields[1], *Key._fields[1:], *Fact._fields[2:])
"""Of a value: what it is about, behind its protocol, and the rest."""


def facts_csv(facts: Sequence[Fact]) -> str:
    """One line per value; an empty ``value`` where there is none. A text that a spreadsheet would run gets an apostrophe.

    Suites that name the run in the same place stand in one line, with ``; `` between them.
    """
    at = COLUMNS.index("suites")
    lines = map(_values_of, facts)
    return _write(COLUMNS, ((*line[:at], "; ".join(line[at]), *line[at + 1 :]) for line in lines))


def _values_of(fact: Fact) -> tuple[Any, ...]:
    paper, *about = fact.about
    return paper, fact.protocol, *about, *fact[2:]


def published_csv(tables: Sequence[PrintedTable]) -> str:
    """One line per cell of the printed tables, in print order; an empty ``value`` where print has `nan` or a dash."""
    lines = []
    for table in tables:
        for place, cell in table.cells.items():
            if number := cell.published:
                lines.append([table.layout.id, place.name, *number.key, number.value, number.sd, number.text])
    return _write(["table", "cell", *Key._fields, "value", "sd", "printed"], lines)


def compared_csv(found: Sequence[Comparison]) -> str:
    """One line per cell of a comparison of two results folders."""
    lines = [each for comparison in found for each in comparison.values()]
    return _write(list(lines[0]), (list(line.values()) for line in lines))


def compared_json(found: Sequence[Comparison], folders: Sequence[Path]) -> str:
    """The two folders, and the cells of their comparison."""
    first, second = map(str, folders)
    return _json(
        {"a": first, "b": second, "cells": [_with_terms(each) for comparison in found for each in comparison.values()]}
    )


def _write(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(value) if isinstance(value, str) else value for value in line] for line in lines)
    return text.getvalue()


def _safe(text: str) -> str:
    """The text, printable, behind an apostrophe where a spreadsheet would take it for a formula."""
    return printable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def json_text(report: Report, tolerance: float, statistics: Analysis | None = None) -> str:
    """The runs (accuracies after the last and the best epoch), the values, the cells of all tables, and statistics."""
    content: dict[str, Any] = {
        "runs": _runs(report.rows),
        "facts": [_with_terms(dict(zip(COLUMNS, _values_of(fact), strict=True))) for fact in report.facts],
        "cells": [*_printed(report, tolerance), *_generic(report, tolerance), *_measured(report, tolerance)],
    }
    if statistics:
        content["statistics"] = statistics.json()
    return _json(content)


def _runs(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The runs, each once in every place of a table that it has, with the suites that name it there."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        suite, *setting = row.group
        values = {key: value for key, value in vars(row).items() if key != "suite"}
        place = (row.run_id, row.trial, row.method, *row.pair, *setting)
        found.setdefault(place, _with_terms({"suites": [], **values}))["suites"].append(suite)
    return list(found.values())


def _with_terms(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "terms": _parsed(values["terms"] or "{}")}


@cache
def _parsed(terms: str) -> Any:
    return json.loads(terms)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _printed(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.printed:
        for place, cell in table.cells.items():
            key = cell.published.key._asdict() if cell.published else {}
            yield {"table": table.layout.id, "cell": place.name, **key, **_values(cell, tolerance)}


def _generic(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.tables:
        setting = {**table.group._asdict(), "score": table.score}
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
