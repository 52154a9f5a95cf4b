"""Rows → tables: methods down, teacher and student across, one table for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from kdbench.report.captions import caption, differing_teachers, empty_cells, provenance, unequal_trials, unjudged
from kdbench.report.cells import DECIMALS, Cell, cell_text, make_cell, published_behind
from kdbench.report.formats import TOLERANCE, View
from kdbench.report.keys import Group, Pair, pair_text
from kdbench.report.marks import outstanding
from kdbench.report.published import published
from kdbench.report.rows import Row, measured_on, teacher_accuracy
from kdbench.report.samples import Samples, samples_by_table
from kdbench.report.sheet import Band, Entry, Mark, Sheet
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
        (Band((tuple(header),), (tuple(map(tuple, lines)),)),),
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
