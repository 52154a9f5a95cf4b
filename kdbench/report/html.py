"""One HTML page that needs nothing else: tables, curves, costs, statistics, machines, and how to get them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from kdbench import __version__
from kdbench.report.assemble import Analysis, Report, mark_separable
from kdbench.report.captions import environments, latest, sources
from kdbench.report.cells import Cell, measured_text
from kdbench.report.observations import Row, Status
from kdbench.report.options import TOLERANCE, View
from kdbench.report.page_data import Trained, cell_number, own_methods, page_data, printed_details, safe_json
from kdbench.report.published import titles
from kdbench.report.sheet import Line, Mark, Sheet, plain
from kdbench.report.tables import Table, printed_sheet, table_sheet
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class Choice:
    """How a page shows a report; ``commands`` is what one types to get it."""

    view: View = View.both
    tolerance: float = TOLERANCE
    separable: bool = False
    commands: str = ""


def html(report: Report, analysis: Analysis, suites: Sequence[Suite], stores: Sequence[Store], choice: Choice) -> str:
    """The page as text.

    All runs stand in its tables by setting, also those that fill the papers' tables, which follow.
    """
    from jinja2 import Environment

    trained = {id: Trained(record, record.metadata()) for id, record in _records(report.rows, stores).items()}
    specs = {id: spec for suite in suites for id, spec in suite.specs.items()}
    abouts = [each.about for each in trained.values() if each.about]
    environment = Environment(autoescape=True)
    environment.filters["plain"] = plain
    return environment.from_string(_page("report.html.j2")).render(
        heading=", ".join(suite.name for suite in suites) or "The papers’ tables",
        descriptions=[suite.description for suite in suites if suite.description],
        counts=_counts(report.rows),
        tables=_table_views(report.whole, analysis, choice),
        papers=[
            (printed_sheet(table, choice.view, choice.tolerance), printed_details(table)) for table in report.printed
        ],
        measurements=report.measurement_sheets(choice.view),
        statistics=analysis.sheets(),
        environment=environments(abouts),
        commands=choice.commands,
        sources=sources(suites),
        latest=latest(abouts),
        version=__version__,
        data=_trusted(safe_json(page_data(report.whole, report.rows, specs, trained, own_methods(suites)))),
        style=_trusted(_page("style.css")),
        scripts=[_trusted(_page("tables.js")), _trusted(_page("charts.js"))],
    )


def _page(name: str) -> str:
    return files("kdbench.report").joinpath("page", name).read_text(encoding="utf-8")


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _records(rows: Sequence[Row], stores: Sequence[Store]) -> dict[str, Record]:
    """The record of each run whose number the tables show, from the store that they have it from."""
    records: dict[str, Record] = {}
    for id in dict.fromkeys(row.run_id for row in rows if row.status == "done"):
        found = (store.run(id) for store in stores)
        record = next((each for each in found if len(stores) == 1 or each.done()), None)
        records |= {id: record} if record else {}
    return records


def _counts(rows: Sequence[Row]) -> str:
    status = Counter({row.run_id: row.status for row in rows}.values())
    words: dict[Status, str] = {"done": "done", "failed": "failed", "started": "in training", "missing": "not run"}
    parts = [f"{status[key]:,} {word}" for key, word in words.items() if status[key]]
    return f"{status.total():,} runs: {', '.join(parts)}." if parts else ""


def _table_views(tables: Sequence[Table], analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    names = titles(table.group for table in tables)
    compare = choice.view in (View.both, View.published)
    views = []
    for table in tables:
        sheet = table_sheet(table, View.both if compare else View.measured)
        if choice.separable:
            sheet = mark_separable(sheet, table, analysis.samples[table.group])
        views.append(_table_view(names[table.group], table, sheet, compare=compare))
    return views


def _table_view(title: str, table: Table, sheet: Sheet, *, compare: bool) -> dict[str, Any]:
    """A table's texts, ready for the template. The sheet's last lines are the methods."""
    accuracies = [table.teachers.get(teacher) for teacher, _ in table.pairs]
    return {
        "title": title,
        "pairs": table.pairs,
        "teachers": ["" if value is None else f"{value:.2f}" for value in accuracies] if table.teachers else [],
        "lines": [
            (method, _cell_views(table, method, line, compare=compare))
            for method, line in zip(table.methods, sheet.lines[-len(table.methods) :], strict=True)
        ],
        "caption": sheet.caption,
        "notes": sheet.notes,
    }


def _cell_views(table: Table, method: str, line: Line, *, compare: bool) -> list[dict[str, Any] | None]:
    return [
        _cell_view(cell, entry.mark, cell_number(table, method, pair), compare=compare)
        if (cell := table.cells.get((method, pair)))
        else None
        for pair, entry in zip(table.pairs, line[1:], strict=True)
    ]


def _cell_view(cell: Cell, mark: Mark, number: int, *, compare: bool) -> dict[str, Any]:
    mean, _, spread = measured_text(cell).partition(" ")
    return {
        "mean": mean,
        "spread": spread,
        "published": cell.published.text if compare and cell.published else "",
        "value": cell.mean,
        "mark": mark,
        "number": number,
    }
