"""Rows → tables: methods down, teacher and student across, one table for each setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from kdbench.errors import BadRecord
from kdbench.report.published import published
from kdbench.report.rows import Row, measured_on
from kdbench.store.store import Store


Pair = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """Mean and sample deviation (ddof 1; None with one trial) over n trials of ``planned``; ``note`` says what lacks."""

    mean: float | None
    sd: float | None
    n: int
    planned: int
    published: str | None = None
    note: str = ""


@dataclass
class Table:
    """One setting's results. ``cells`` by (method, (teacher, student)); ``teachers`` holds the teachers' accuracies."""

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

    @property
    def title(self) -> str:
        parts = [self.dataset, self.scenario, f"{self.strategy} teacher"]
        return f"{self.suite}: {', '.join(part for part in parts if part)}"

    @property
    def caption(self) -> str:
        """What a reader must know to compare: protocol, score rule, trials, versions."""
        images = measured_on(self.dataset)
        rule = "accuracy after the last epoch" if self.score == "last" else f"best epoch, chosen by {images} accuracy"
        shown = [cell for cell in self.cells.values() if cell.n]
        trials = sorted({cell.n for cell in shown}) or [0]
        count = f"{trials[0]}" if len(trials) == 1 else f"{trials[0]}-{trials[-1]}"
        unit = "trial" if count == "1" else "trials"
        version = f"; kdbench {', '.join(self.versions)}" if self.versions else ""
        return (
            f"Top-1 {images} accuracy in %, mean ± sd (n); protocol {self.protocol}; {rule}; {count} {unit}{version}."
        )

    def best(self, pair: Pair) -> str | None:
        """The method with the highest mean of a column, None where fewer than two have one."""
        means = {m: c.mean for m in self.methods if (c := self.cells.get((m, pair))) and c.mean is not None}
        return max(means, key=lambda method: means[method]) if len(means) > 1 else None

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
        table.cells = {place: make_cell(found) for place, found in members[name].items()}
        everything = [row for found in members[name].values() for row in found]
        table.versions = tuple(sorted({row.version for row in everything if row.version}))
        table.teachers = _teacher_accuracies(everything, stores)
    return list(tables.values())


def make_cell(rows: Sequence[Row]) -> Cell:
    """Aggregate the trials of one cell."""
    values = [row.top1 for row in rows if row.top1 is not None]
    reasons = Counter(row.reason for row in rows if row.top1 is None)
    note = "; ".join(f"{reason} ({count} of {len(rows)})" for reason, count in reasons.items())
    return Cell(
        mean=fmean(values) if values else None,
        sd=stdev(values) if len(values) > 1 else None,
        n=len(values),
        planned=len(rows),
        published=published(rows[0]),
        note=note,
    )


def _learned_beside(rows: Sequence[Row]) -> dict[str, float]:
    """Mean test accuracy of the teachers that learned beside their students: each trial and student has its own."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        if row.teacher_top1 is not None:
            found.setdefault(row.teacher, {})[row.trial, row.student] = row.teacher_top1
    return {teacher: fmean(values.values()) for teacher, values in found.items()}


def _teacher_accuracies(rows: Sequence[Row], stores: Sequence[Store]) -> dict[str, float]:
    """Test accuracy of each teacher as it taught, with the weights of its last or of its best epoch."""
    found = _learned_beside(rows)
    for row in rows:
        if not row.teacher_id or row.teacher in found:
            continue
        for store in stores:
            try:
                result = store.teacher(row.teacher_id).result()
            except BadRecord:
                continue
            accuracy = result.accuracy(row.teacher_checkpoint) if result else None
            if accuracy is not None:
                found[row.teacher] = accuracy.top1
                break
    return found
