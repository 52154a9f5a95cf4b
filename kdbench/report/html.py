"""One HTML page that needs nothing else: tables, curves, costs, statistics, machines, and how to get them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from kdbench import __version__
from kdbench.report.cells import Cell
from kdbench.report.page_data import Trained, cell_number, page_data, safe_json
from kdbench.report.provenance import commands, environments, latest, sources
from kdbench.report.rows import Row
from kdbench.report.sheet import Line, Mark, Sheet, plain
from kdbench.report.tables import Table
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class Contents:
    """What a page shows: each table with its sheet, statistics, tables of papers.

    ``references``, ``options`` and ``report_options`` are what the command line named.
    """

    suites: Sequence[Suite]
    rows: Sequence[Row]
    tables: Sequence[tuple[Table, Sheet]]
    statistics: Sequence[Sheet]
    papers: Sequence[Sheet] = ()
    references: Sequence[str] = ()
    options: Sequence[str] = ()
    report_options: Sequence[str] = ()


def html(contents: Contents, stores: Sequence[Store], *, compare: bool) -> str:
    """The page as text. ``compare`` puts the published numbers beside the measured ones."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=False)
    environment.filters["plain"] = plain
    suites, rows = contents.suites, contents.rows
    trained = {id: Trained(record, record.about()) for id, record in _records(rows, stores).items()}
    specs = {id: spec for suite in suites for id, spec in suite.specs.items()}
    abouts = [each.about for each in trained.values() if each.about]
    return environment.from_string(_page("report.html.j2")).render(
        heading=", ".join(suite.name for suite in suites) or "kdbench",
        descriptions=[suite.description for suite in suites if suite.description],
        counts=_counts(rows),
        tables=[_table_view(table, sheet, compare=compare) for table, sheet in contents.tables],
        papers=contents.papers,
        statistics=contents.statistics,
        environment=environments(abouts),
        commands=commands(contents.references, contents.options, contents.report_options),
        sources=sources(suites),
        latest=latest(abouts),
        version=__version__,
        data=_trusted(safe_json(page_data([table for table, _ in contents.tables], rows, specs, trained))),
        style=_trusted(_page("style.css")),
        scripts=[_trusted(_page("tables.js")), _trusted(_page("charts.js"))],
    )


def _page(name: str) -> str:
    return files("kdbench.report").joinpath("page", name).read_text(encoding="utf-8")


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _records(rows: Sequence[Row], stores: Sequence[Store]) -> dict[str, Record]:
    """The record of each run that was at least started, from the first store that has its result, or else any of it."""
    records: dict[str, Record] = {}
    for row in rows:
        if row.status == "missing" or row.run_id in records:
            continue
        found = [store.run(row.run_id) for store in stores]
        done = [record for record in found if len(stores) == 1 or row.status != "done" or record.done()]
        records[row.run_id] = next(iter(done or found))
    return records


def _counts(rows: Sequence[Row]) -> str:
    status = Counter({row.run_id: row.status for row in rows}.values())
    words = {"done": "done", "failed": "failed", "started": "in training", "missing": "not run"}
    parts = [f"{status[key]:,} {word}" for key, word in words.items() if status[key]]
    return f"{status.total():,} runs: {', '.join(parts)}." if parts else "No runs."


def _table_view(table: Table, sheet: Sheet, *, compare: bool) -> dict[str, Any]:
    """A table's texts, ready for the template. The sheet's last lines are the methods."""
    accuracies = [table.teachers.get(teacher) for teacher, _ in table.pairs]
    methods = list(sheet.lines)[-len(table.methods) :]
    return {
        "title": table.title,
        "pairs": table.pairs,
        "teachers": ["" if value is None else f"{value:.2f}" for value in accuracies] if table.teachers else [],
        "lines": [
            (method, _cell_views(table, method, line, compare=compare))
            for method, line in zip(table.methods, methods, strict=True)
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
    spread = "" if cell.sd is None else f"± {cell.sd:.2f} "
    if cell.n:
        spread += f"({cell.n})" if cell.n == cell.planned else f"({cell.n} of {cell.planned})"
    return {
        "mean": "–" if cell.mean is None else f"{cell.mean:.2f}",
        "spread": spread,
        "published": cell.published.text if compare and cell.published else "",
        "value": cell.mean,
        "mark": mark,
        "number": number,
    }
