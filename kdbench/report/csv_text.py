"""Tidy values as CSV: one line for each measured value, or for each printed cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.report.facts import Fact
from kdbench.report.keys import Key
from kdbench.report.printed import PrintedTable


def facts_csv(facts: Sequence[Fact]) -> str:
    """One line per value; an empty ``value`` where there is none. A text that a spreadsheet would run gets an apostrophe."""
    return _write(Fact._fields, facts)


def published_csv(tables: Sequence[PrintedTable]) -> str:
    """One line per cell of the printed tables, in print order; an empty ``value`` where print has `nan` or a dash."""
    lines = []
    for table in tables:
        for place, cell in table.cells.items():
            if number := cell.published:
                lines.append([table.layout.id, place.name, *number.key, number.value, number.sd, number.text])
    return _write(["table", "cell", *Key._fields, "value", "sd", "printed"], lines)


def _write(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(value) if isinstance(value, str) else value for value in line] for line in lines)
    return text.getvalue()


def _safe(text: str) -> str:
    """The text behind an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
