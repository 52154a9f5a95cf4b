"""Tables as text: terminal, markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from kdbench.report.rows import Row
from kdbench.report.tables import Cell, Table


def cell_text(cell: Cell | None, *, compare: bool) -> str:
    """``76.20 ± 0.10 (3)``, and ``| 76.23`` behind it where a published number is wanted; ``–`` for an empty cell."""
    if cell is None:
        return ""
    text = "–" if cell.mean is None else f"{cell.mean:.2f}"
    if cell.sd is not None:
        text += f" ± {cell.sd:.2f}"
    if cell.n:
        text += f" ({cell.n})" if cell.n == cell.planned else f" ({cell.n} of {cell.planned})"
    if compare and cell.published:
        text += f" | {cell.published}"
    return text


def grid(table: Table, emphasise: Callable[[str], str], *, compare: bool) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table as text; the best of each column goes through ``emphasise``."""
    header = ["method", *(f"{teacher} → {student}" if teacher else student for teacher, student in table.pairs)]
    body = []
    if table.teachers:
        values = [table.teachers.get(teacher) for teacher, _ in table.pairs]
        body.append(["(teacher)", *("" if value is None else f"{value:.2f}" for value in values)])
    best = {pair: table.best(pair) for pair in table.pairs}
    for method in table.methods:
        texts = {pair: cell_text(table.cells.get((method, pair)), compare=compare) for pair in table.pairs}
        body.append([method, *(emphasise(t) if best[pair] == method else t for pair, t in texts.items())])
    return header, body


def notes(table: Table) -> list[str]:
    """Why cells are empty or short of trials, one line per reason."""
    places: dict[str, list[str]] = {}
    for (method, (teacher, student)), cell in table.cells.items():
        if cell.note:
            places.setdefault(cell.note, []).append(f"{method} on {teacher + ' → ' if teacher else ''}{student}")
    return [f"{_some(found)}: {note}" for note, found in places.items()]


def markdown(tables: Sequence[Table], *, compare: bool) -> str:
    """Markdown, one section per table."""
    from tabulate import tabulate

    parts = []
    for table in tables:
        header, body = grid(table, lambda text: f"**{text}**", compare=compare)
        header, *body = [[text.replace("|", "\\|") for text in line] for line in (header, *body)]
        text = tabulate(body, header, tablefmt="pipe", disable_numparse=True)
        lines = [f"### {table.title}", "", text, "", _caption(table, compare), *(f"- {note}" for note in notes(table))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def terminal(tables: Sequence[Table], *, compare: bool, width: int, colour: bool) -> str:
    """Tables for a terminal of ``width`` columns."""
    from rich.console import Console, Group
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=colour, highlight=False)
    for table in tables:
        header, body = grid(table, lambda text: f"\0{text}", compare=compare)
        rich = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
        for index, label in enumerate(header):
            rich.add_column(escape(label), justify="left" if index == 0 else "right", overflow="fold")
        for line in body:
            rich.add_row(*(Text(t.removeprefix("\0"), style="bold green" if t.startswith("\0") else "") for t in line))
        console.print(Group(rich, Text(_caption(table, compare), style="dim"), *map(Text, notes(table))), "")
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def csv_text(rows: Sequence[Row]) -> str:
    """One line per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def json_text(rows: Sequence[Row], tables: Sequence[Table]) -> str:
    """The runs, and the tables' cells with mean, sd, n and the published number."""
    cells = [
        {**_setting(table), "method": method, "teacher": teacher, "student": student, **asdict(cell)}
        for table in tables
        for (method, (teacher, student)), cell in table.cells.items()
    ]
    return json.dumps({"runs": [vars(row) for row in rows], "cells": cells}, indent=1, allow_nan=False) + "\n"


def _setting(table: Table) -> dict[str, Any]:
    return {key: getattr(table, key) for key in ("suite", "protocol", "dataset", "scenario", "strategy", "score")}


def _caption(table: Table, compare: bool) -> str:
    return table.caption + (" Behind the bar: the published number." if compare and table.has_published else "")


def _some(places: list[str]) -> str:
    return ", ".join(places) if len(places) <= 3 else f"{', '.join(places[:2])} and {len(places) - 2} more"
