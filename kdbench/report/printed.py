"""The papers' tables, filled: with measured numbers, with the printed ones, or with both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdbench.report.captions import caption, provenance
from kdbench.report.cells import Cell, cell_text, make_cell, published_behind
from kdbench.report.facts import Fact
from kdbench.report.keys import Key
from kdbench.report.layouts import Axis, Band, Layout, Place, layouts, remarks
from kdbench.report.marks import marks
from kdbench.report.published import printed
from kdbench.report.sheet import Band as SheetBand
from kdbench.report.sheet import Entry, Line, Sheet, spanning
from kdbench.report.views import TOLERANCE, View


@dataclass(frozen=True, eq=False)
class PrintedTable:
    """A printed table with its cells in print order, and the measured values that they are made of."""

    layout: Layout
    cells: dict[Place, Cell]
    facts: tuple[Fact, ...] = ()


def fill(layout: Layout, measured: Mapping[Key, Sequence[Fact]]) -> PrintedTable:
    """Put the printed and the measured numbers into a table's cells."""
    cells: dict[Place, Cell] = {}
    used: dict[tuple[str, str], Fact] = {}
    for place in layout.places:
        number = printed(place)
        found = measured.get(number.key, ())
        used |= {(fact.run_id, fact.metric): fact for fact in found}
        trials = [(fact.value, fact.reason) for fact in found]
        cells[place] = make_cell(trials, number, percent=layout.unit == "%")
    return PrintedTable(layout, cells, tuple(used.values()))


def printed_sheet(table: PrintedTable, view: View, tolerance: float = TOLERANCE) -> Sheet:
    """A table as lines of text. Under the view `published` it is as the paper prints it."""
    layout, cells = table.layout, iter(table.cells.items())
    bands = []
    for band in layout.bands:
        rows = [[next(cells) for _ in band.columns] for _ in band.rows]
        bands.append(_band(layout, band, rows, view, tolerance))
    if view is View.published:
        text, notes = f"{layouts().papers[layout.paper]}: {layout.caption}", remarks().get(layout.id, ())
    else:
        text = caption("In %" if layout.unit else "Numbers", view, _origin(table), tolerance, compared=True)
        notes = tuple(_empty_cells(table))
    return Sheet(f"{layout.id}: {layout.title}", tuple(bands), layout.id, layout.stub, text, notes)


def _band(layout: Layout, band: Band, rows: list[list[tuple[Place, Cell]]], view: View, tolerance: float) -> SheetBand:
    numbers = [[_number(place, cell, view) for place, cell in row] for row in rows]
    parts: dict[str, list[Line]] = {}
    for axis, row, row_marks in zip(band.rows, rows, marks(layout, band, numbers), strict=True):
        line = [Entry(_label(axis, view))] if layout.stub else []
        for (place, cell), mark in zip(row, row_marks, strict=True):
            text = cell_text(cell, view, decimals=place.decimals, tolerance=tolerance)
            line.append(Entry(place.write(text), mark, behind=published_behind(cell, view)))
        parts.setdefault(axis.part, []).append(tuple(line))
    return SheetBand(_header(layout, band, view), tuple(tuple(lines) for lines in parts.values()))


def _header(layout: Layout, band: Band, view: View) -> tuple[Line, ...]:
    """The header lines. A label that is printed once beside two lines stands beside the lower one."""
    lines: list[Line] = []
    stubs = [line.stub or "" for line in band.header]
    for index, line in enumerate(band.header):
        texts = [_label(axis, view) if line.source == "label" else getattr(axis, line.source) for axis in band.columns]
        entries = spanning(texts) if line.source == "group" else tuple(Entry(text) for text in texts)
        stub = "" if stubs[index : index + 2] == [stubs[index]] * 2 else stubs[index]
        lines.append(((Entry(stub), *entries)) if layout.stub else entries)
    return tuple(lines)


def _label(axis: Axis, view: View) -> str:
    """A row's or column's label; with the paper's own reference number only where its own numbers are shown."""
    cite = f" [{axis.cite}]" if axis.cite is not None and view is View.published else ""
    return (axis.label or "") + cite


def _number(place: Place, cell: Cell, view: View) -> float | None:
    """The number that a cell is marked by, as exactly as it is shown; none where no accuracies are shown."""
    if view in (View.difference, View.verdict):
        return None
    number = cell.published.value if view is View.published and cell.published else cell.mean
    return None if number is None else round(number, place.decimals)


def _origin(table: PrintedTable) -> str:
    students = [fact for fact in table.facts if fact.method != "teacher"]
    return provenance(
        (fact.protocol for fact in table.facts),
        (fact.score for fact in students),
        (cell.n for place, cell in table.cells.items() if place.select.get("method") != "teacher"),
        (fact.version for fact in table.facts),
    )


def _empty_cells(table: PrintedTable) -> Iterator[str]:
    """Why cells are empty or short of trials, one line per reason. A row that is so as a whole is named once."""
    reasons: dict[str, dict[int, list[Place]]] = {}
    for place, cell in table.cells.items():
        reason = cell.note if cell.planned else "not part of this suite"
        if reason:
            reasons.setdefault(reason, {}).setdefault(id(place.row), []).append(place)
    for reason, rows in reasons.items():
        names = []
        for places in rows.values():
            whole = places[0].row_name and len(places) == len(table.layout.bands[places[0].band].columns)
            names += [places[0].row_name] if whole else [place.name for place in places]
        everything = sum(map(len, rows.values())) == len(table.cells)
        yield f"{'All cells' if everything else ', '.join(names)}: {reason}"
