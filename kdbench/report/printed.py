"""The papers' tables, filled: with measured numbers, with the printed ones, or with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kdbench.report.captions import at_most, by_reason, caption, provenance, some, unequal_trials, unjudged
from kdbench.report.cells import Cell, cell_text, make_cell, published_behind
from kdbench.report.facts import Fact
from kdbench.report.formats import TOLERANCE, View
from kdbench.report.keys import Key, tiny_paper
from kdbench.report.layouts import Axis, Band, Layout, Place, layouts, remarks
from kdbench.report.marks import Places, marks
from kdbench.report.published import printed
from kdbench.report.samples import shared_means
from kdbench.report.sheet import Band as SheetBand
from kdbench.report.sheet import Entry, Line, Sheet, spanning


@dataclass(frozen=True, eq=False)
class PrintedTable:
    """A printed table with its cells in print order, and the measured values that they are made of."""

    layout: Layout
    cells: dict[Place, Cell]
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def versions(self) -> list[str]:
        """The version behind each run and teacher whose numbers it shows."""
        return list({fact.run_id: fact.version for fact in self.facts if fact.value is not None}.values())


def fill(
    layout: Layout,
    measured: Mapping[Key, Sequence[Fact]],
    absent: Callable[[Key], str] | None = None,
    *,
    tiny: bool = False,
) -> PrintedTable:
    """Put the printed and the measured numbers into a table's cells; those of tiny runs stand there alone.

    ``absent`` says why nothing was to be measured.
    """
    cells: dict[Place, Cell] = {}
    used: dict[tuple[str, str], Fact] = {}
    for place in layout.places:
        number = printed(place)
        key = number.key._replace(paper=tiny_paper(number.key.paper)) if tiny else number.key
        found = measured.get(key, ())
        used |= {(fact.run_id, fact.about.metric): fact for fact in found}
        trials = [(fact.trial, fact.value, fact.reason) for fact in found]
        once = place.select.get("method") == "teacher"
        cell = make_cell(trials, None if tiny else number, percent=layout.unit == "%", enough=1 if once else 2)
        cells[place] = replace(cell, note=absent(key)) if absent and not found else cell
    return PrintedTable(layout, cells, tuple(used.values()))


def printed_sheet(table: PrintedTable, view: View, tolerance: float = TOLERANCE) -> Sheet:
    """A table as lines of text. Under the view `published` it is as the paper prints it."""
    layout, cells = table.layout, iter(table.cells.items())
    bands, unequal = [], []
    for band in layout.bands:
        rows = [[next(cells) for _ in band.columns] for _ in band.rows]
        numbers = _Compared(rows, view)
        bands.append(_band(layout, band, rows, numbers, view, tolerance))
        unequal += numbers.notes
    if view is View.published:
        text, notes = f"{layouts().papers[layout.paper]}: {layout.caption}", remarks().get(layout.id, ())
    else:
        compared = any(cell.published for cell in table.cells.values())
        text = caption("In %" if layout.unit else "Numbers", view, _origin(table), tolerance, compared=compared)
        notes = (*unjudged(table.cells.values(), view, tolerance), *table.notes, *dict.fromkeys(unequal))
        notes += tuple(at_most(_empty_cells(table)))
        notes += remarks().get(layout.id, ()) if compared and view is not View.measured else ()
    return Sheet(f"{layout.id}: {layout.title}", tuple(bands), layout.id, layout.stub, text, notes)


Rows = list[list[tuple[Place, Cell]]]


class _Compared:
    """The numbers of a band's cells that are compared, as exactly as they are shown; none where no accuracies are shown.

    Measured ones are means over shared trials; ``notes`` say where these are not all.
    """

    def __init__(self, rows: Rows, view: View) -> None:
        self.rows = rows
        self.view = view
        self.notes: list[str] = []

    def of(self, group: Places) -> list[float | None]:
        found = [self.rows[row][column] for row, column in group]
        if self.view in (View.difference, View.verdict):
            return [None] * len(found)
        if self.view is View.published:
            means = [cell.published.value if cell.published else None for _, cell in found]
        else:
            means = shared_means([cell.values for _, cell in found])
            self.notes += unequal_trials(cell for _, cell in found if any(mean is not None for mean in means))
        return [
            None if mean is None else round(mean, place.decimals) for (place, _), mean in zip(found, means, strict=True)
        ]


def _band(layout: Layout, band: Band, rows: Rows, numbers: _Compared, view: View, tolerance: float) -> SheetBand:
    parts: dict[str, list[Line]] = {}
    for axis, row, row_marks in zip(band.rows, rows, marks(layout, band, numbers.of), strict=True):
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


def _origin(table: PrintedTable) -> str:
    students = [fact for fact in table.facts if fact.about.method != "teacher"]
    return provenance(
        (fact.protocol for fact in table.facts),
        (fact.score for fact in students),
        (cell.n for place, cell in table.cells.items() if place.select.get("method") != "teacher"),
        table.versions,
        teachers=(fact.score for fact in table.facts if fact.about.method == "teacher" and fact.value is not None),
    )


def _empty_cells(table: PrintedTable) -> Iterator[str]:
    """Why cells are empty or short of trials, one line per kind of reason. A row that is so as a whole is named once."""
    for places, reason in by_reason((place, cell.note) for place, cell in table.cells.items()):
        rows: dict[int, list[Place]] = {}
        for place in places:
            rows.setdefault(id(place.row), []).append(place)
        names = []
        for found in rows.values():
            whole = found[0].row_name and len(found) == len(table.layout.bands[found[0].band].columns)
            names += [found[0].row_name] if whole else [place.name for place in found]
        yield f"{'All cells' if len(places) == len(table.cells) else some(names)}: {reason}"
