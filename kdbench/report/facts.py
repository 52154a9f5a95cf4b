"""Tidy values: one for each number that was measured, or that is still to be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kdbench.report.keys import Key, matched
from kdbench.report.rows import Row, Status, teacher_accuracy
from kdbench.store.store import Store


class Fact(NamedTuple):
    """One value, and what it is ``about``. There ``paper`` is empty where the run is not trained as a paper trains it.

    The metric is `top1` (by the protocol's score rule), `top1_error`, `top5_error`, each in percent, or another that
    reference.csv names; the setting what distinguishes the run from the usual one, in its spelling. ``value`` is None
    unless ``status`` is `done`; then ``reason`` says why. ``score`` is `last` or `best` epoch, or mean of the `last ten`.
    ``trained_on`` is the data set on which a network was trained that was measured on another one.
    """

    about: Key
    protocol: str
    trial: int
    value: float | None
    run_id: str
    status: Status
    reason: str = ""
    version: str = ""
    score: str = ""
    trained_on: str = ""


def row_fact(row: Row, metric: str, value: float | None, score: str) -> Fact:
    """A value of a run's student."""
    about = row.about(metric)
    return Fact(about, row.protocol, row.trial, value, row.run_id, row.status, row.reason, row.version, score)


def run_facts(rows: Iterable[Row]) -> list[Fact]:
    """The accuracies and errors of the students of runs."""
    return [
        row_fact(row, metric, value, row.score) for row in rows for metric, value in _accuracies(row.top1, row.top5)
    ]


def teacher_facts(rows: Iterable[Row], stores: Sequence[Store]) -> list[Fact]:
    """The accuracies and errors of the teachers of runs, each once, as the method `teacher` without a student."""
    first = {(row.protocol, row.teacher, row.teacher_id): row for row in rows if row.teacher_id}
    facts = []
    for row in first.values():
        accuracy, (status, reason, _, version, _) = teacher_accuracy(row, stores)
        if not accuracy:
            status, reason = "missing" if status == "done" else status, f"teacher {reason or 'without classifier'}"
        top1, top5 = (accuracy.top1, accuracy.top5) if accuracy else (None, None)
        for metric, value in _accuracies(top1, top5):
            about = Key(row.teacher_paper, "teacher", row.teacher, "", row.dataset, row.strategy, "", metric)
            facts.append(
                Fact(about, row.protocol, 0, value, row.teacher_id, status, reason, version, row.teacher_checkpoint)
            )
    return facts


def _accuracies(top1: float | None, top5: float | None) -> list[tuple[str, float | None]]:
    """The metrics of one measurement."""
    errors = (None if top1 is None else 100 - top1, None if top5 is None else 100 - top5)
    return [("top1", top1), ("top1_error", errors[0]), ("top5_error", errors[1])]


def by_key(facts: Iterable[Fact]) -> dict[Key, list[Fact]]:
    """The values that can stand beside printed ones. A run that several suites or columns name counts once."""
    index: dict[Key, dict[str, Fact]] = {}
    for fact in facts:
        if fact.about.paper:
            index.setdefault(matched(fact.about), {}).setdefault(fact.run_id, fact)
    return {key: list(found.values()) for key, found in index.items()}
