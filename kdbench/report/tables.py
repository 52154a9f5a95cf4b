"""Rows → tables: methods down, teacher and student across, one table for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from kdbench.report.captions import caption, differing_teachers, empty_cells, provenance, unjudged
from kdbench.report.cells import DECIMALS, Cell, cell_text, make_cell, published_behind
from kdbench.report.marks import outstanding
from kdbench.report.published import published
from kdbench.report.rows import Row, measured_on, teacher_accuracy
from kdbench.report.sheet import Band, Entry, Mark, Sheet
from kdbench.report.views import TOLERANCE, View
from kdbench.store.store import Store


Pair = tuple[str, str]


@dataclass
class Table:
    """One setting's results. ``cells`` by (method, (teacher, student)); ``teachers`` holds the teachers' accuracies.

    ``versions`` are those behind each run and teacher, "" where it is not known; ``teacher_scores`` the teachers' rules.
    """

    suite: str
    protocol: str
    dataset: str
    scenario: str
    strategy: str
    score: str
    methods: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    cells: dict[tuple[str, Pair], Cell] = field(default_factory=dict)
    teachers: dict[str, float] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    teacher_scores: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        parts = [self.dataset, self.scenario, f"{self.strategy} teacher"]
        return f"{self.suite}: {', '.join(part for part in parts if part)}"

    def best(self, pair: Pair) -> set[str]:
        """The methods with the highest mean of a column, as it is shown; none where fewer than two have one."""
        cells = [self.cells.get((method, pair)) for method in self.methods]
        means = [None if cell is None or cell.mean is None else round(cell.mean, DECIMALS) for cell in cells]
        return {self.methods[at] for at in outstanding(means)}

    @property
    def has_published(self) -> bool:
        return any(cell.published for cell in self.cells.values())


def make_tables(rows: Sequence[Row], stores: Sequence[Store] = ()) -> list[Table]:
    """Group rows by suite, protocol, data set, scenario and strategy, in the order in which they come."""
    tables: dict[tuple[str, ...], Table] = {}
    members: dict[tuple[str, ...], dict[tuple[str, Pair], list[Row]]] = {}
    for row in rows:
        key = (row.suite, row.protocol, row.dataset, row.scenario, row.strategy)
        table = tables.setdefault(key, Table(*key, score=row.score))
        pair = (row.teacher, row.student)
        members.setdefault(key, {}).setdefault((row.method, pair), []).append(row)
        if row.method not in table.methods:
            table.methods.append(row.method)
        if pair not in table.pairs:
            table.pairs.append(pair)
    for name, table in tables.items():
        table.cells = {place: _cell(found) for place, found in members[name].items()}
        everything = [row for found in members[name].values() for row in found]
        table.notes = differing_teachers(row.teachers for row in everything)
        table.teachers, versions = _teacher_accuracies(everything, stores)
        done = {row.run_id: row.version for row in everything if row.status == "done"}
        beside = any(row.teacher_top1 is not None for row in everything)
        finished = (row.teacher_checkpoint for row in everything if row.teacher_id and row.teacher in table.teachers)
        table.teacher_scores = tuple(dict.fromkeys((*finished, *(["last"] if beside else []))))
        table.versions = (*done.values(), *versions)
    return list(tables.values())


def table_sheet(table: Table, view: View, tolerance: float = TOLERANCE) -> Sheet:
    """A table as lines of text."""
    header = [Entry(text) for text in ("method", *map(_arrow, table.pairs))]
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
    images, trials = measured_on(table.dataset), [cell.n for cell in table.cells.values()]
    teachers = table.teacher_scores if view in (View.measured, View.both) else ()
    origin = provenance([table.protocol], [table.score], trials, table.versions, images, teachers)
    return Sheet(
        table.title,
        (Band((tuple(header),), (tuple(map(tuple, lines)),)),),
        caption=caption(f"Top-1 {images} accuracy in %", view, origin, tolerance, compared=table.has_published),
        notes=(
            *unjudged(table.cells.values(), view, tolerance),
            *table.notes,
            *empty_cells((f"{method} on {_arrow(pair)}", cell.note) for (method, pair), cell in table.cells.items()),
        ),
    )


def _arrow(pair: Pair) -> str:
    teacher, student = pair
    return f"{teacher} → {student}" if teacher else student


def _cell(rows: Sequence[Row]) -> Cell:
    first = rows[0]
    return make_cell([(row.top1, row.reason) for row in rows], published(first.key) if first.paper else None)


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
    accuracies = {row.teacher: teacher_accuracy(row, stores) for row in each.values()}
    found = {teacher: accuracy for teacher, accuracy in accuracies.items() if accuracy}
    finished = {teacher: accuracy.top1 for teacher, (accuracy, _) in found.items()}
    return {**finished, **_learned_beside(rows)}, [version for _, version in found.values()]
