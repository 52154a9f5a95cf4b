"""Tables of accuracies: a suite's own (methods against pairs) and the papers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from kdbench.catalogue.tables import Axis, Band, Layout, Place, layouts, remarks
from kdbench.report.captions import (
    at_most,
    by_reason,
    caption,
    differing_teachers,
    empty_cells,
    provenance,
    some,
    unequal_trials,
    unjudged,
)
from kdbench.report.cells import DECIMALS, Cell, Places, cell_text, make_cell, marks, outstanding, published_behind
from kdbench.report.observations import Fact, Row, measured_on, teacher_accuracy
from kdbench.report.options import TOLERANCE, View
from kdbench.report.paired_tests import Samples, samples_by_table, shared_means
from kdbench.report.published import Group, Key, Pair, pair_text, printed, published, tiny_paper
from kdbench.report.sheet import Band as SheetBand
from kdbench.report.sheet import Entry, Line, Mark, Sheet, spanning
from kdbench.store.store import Store


@dataclass(frozen=True)
class Table:
    """One group's results. ``cells`` by (method, (teacher, student)); ``teachers`` holds the teachers' accuracies.

    ``versions`` are those behind each run and teacher, "" where it is not known; ``teacher_scores`` the teachers' rules.
    """

    group: Group
    score: str
    methods: list[str]
    pairs: list[Pair]
    cells: dict[tuple[str, Pair], Cell]
    teachers: dict[str, float]
    versions: tuple[str, ...]
    notes: tuple[str, ...]
    teacher_scores: tuple[str, ...]
    samples: Samples

    def best(self, pair: Pair) -> set[str]:
        """The methods with the highest mean of a column, as it is shown, over the trials that they share."""
        means = self.samples.shared_means(pair)
        shown = [round(mean, DECIMALS) for mean in means.values()]
        return {list(means)[at] for at in outstanding(shown)}

    @property
    def has_published(self) -> bool:
        return any(cell.published for cell in self.cells.values())


def make_tables(rows: Sequence[Row], stores: Sequence[Store] = ()) -> list[Table]:
    """Group rows by suite, protocol, data set, scenario and strategy, in the order in which they come."""
    groups: dict[Group, dict[tuple[str, Pair], list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.group, {}).setdefault((row.method, row.pair), []).append(row)
    samples = samples_by_table(rows)
    return [_table(group, cells, stores, samples[group]) for group, cells in groups.items()]


def _table(group: Group, cells: dict[tuple[str, Pair], list[Row]], stores: Sequence[Store], samples: Samples) -> Table:
    everything = [row for found in cells.values() for row in found]
    teachers, versions = _teacher_accuracies(everything, stores)
    done = {row.run_id: row.version for row in everything if row.status == "done"}
    beside = any(row.teacher_top1 is not None for row in everything)
    finished = (row.teacher_checkpoint for row in everything if row.teacher_id and row.teacher in teachers)
    return Table(
        group=group,
        score=everything[0].score,
        methods=list(dict.fromkeys(method for method, _ in cells)),
        pairs=list(dict.fromkeys(pair for _, pair in cells)),
        cells={place: _cell(found) for place, found in cells.items()},
        teachers=teachers,
        versions=(*done.values(), *versions),
        notes=differing_teachers(row.teachers for row in everything),
        teacher_scores=tuple(dict.fromkeys((*finished, *(["last"] if beside else [])))),
        samples=samples,
    )


def table_sheet(table: Table, view: View, tolerance: float = TOLERANCE) -> Sheet:
    """A table as lines of text."""
    header = [Entry(text) for text in ("method", *map(pair_text, table.pairs))]
    lines = []
    if table.teachers and view in (View.measured, View.both):
        values = [table.teachers.get(teacher) for teacher, _ in table.pairs]
        lines.append([Entry("(teacher)"), *(Entry("" if value is None else f"{value:.2f}") for value in values)])
    best = {pair: table.best(pair) for pair in table.pairs} if view in (View.measured, View.both) else {}
    for method in table.methods:
        line = [Entry(method)]
        for pair in table.pairs:
            cell = table.cells.get((method, pair))
            mark = Mark.best if method in best.get(pair, ()) else Mark.none
            line.append(Entry(cell_text(cell, view, tolerance=tolerance), mark, behind=published_behind(cell, view)))
        lines.append(line)
    images, trials = measured_on(table.group.dataset), [cell.n for cell in table.cells.values()]
    teachers = table.teacher_scores if view in (View.measured, View.both) else ()
    origin = provenance([table.group.protocol], [table.score], trials, table.versions, images, teachers)
    return Sheet(
        table.group.title,
        (SheetBand((tuple(header),), (tuple(map(tuple, lines)),)),),
        caption=caption(f"Top-1 {images} accuracy in %", view, origin, tolerance, compared=table.has_published),
        notes=(
            *unjudged(table.cells.values(), view, tolerance),
            *table.notes,
            *unequal_trials([cell for (_, pair), cell in table.cells.items() if best.get(pair)]),
            *empty_cells((f"{method} on {pair_text(pair)}", cell.note) for (method, pair), cell in table.cells.items()),
        ),
    )


def _cell(rows: Sequence[Row]) -> Cell:
    first = rows[0]
    trials = [(row.trial, row.top1, row.reason) for row in rows]
    return make_cell(trials, published(first.about("top1")) if first.paper else None)


def _learned_beside(rows: Sequence[Row]) -> dict[str, float]:
    """Mean test accuracy of the teachers that learned beside their students: each trial and student has its own."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        if row.teacher_top1 is not None:
            found.setdefault(row.teacher, {})[row.trial, row.student] = row.teacher_top1
    return {teacher: fmean(values.values()) for teacher, values in found.items()}


def _teacher_accuracies(rows: Sequence[Row], stores: Sequence[Store]) -> tuple[dict[str, float], list[str]]:
    """Test accuracy of each teacher as it taught, and the versions of those that were finished before."""
    each = {(row.teacher, row.teacher_id): row for row in rows if row.teacher_id}
    finished: dict[str, float] = {}
    versions: dict[str, str] = {}
    for row in each.values():
        accuracy, state = teacher_accuracy(row, stores)
        if accuracy:
            finished[row.teacher], versions[row.teacher] = accuracy.top1, state.version
    return {**finished, **_learned_beside(rows)}, list(versions.values())


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
