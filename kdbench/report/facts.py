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
    ``trained_on`` is the data set on which a network was trained that was measured on another one. ``suites`` are all that
    name the run in this place; ``terms`` are a student's, as in ``Row``.
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
    suites: tuple[str, ...] = ()
    terms: str = ""


def row_fact(row: Row, metric: str, value: float | None, score: str) -> Fact:
    """A value of a run's student."""
    about, beside = row.about(metric), ("", (row.suite,), row.terms)
    return Fact(about, row.protocol, row.trial, value, row.run_id, row.status, row.reason, row.version, score, *beside)


def run_facts(rows: Iterable[Row]) -> list[Fact]:
    """The accuracies and errors of the students of runs."""
    return [
        row_fact(row, metric, value, row.score) for row in rows for metric, value in _accuracies(row.top1, row.top5)
    ]


def teacher_facts(rows: Iterable[Row], stores: Sequence[Store]) -> list[Fact]:
    """The accuracies and errors of the teachers of runs, each once, as the method `teacher` without a student."""
    last: dict[tuple[str, str, str], Row] = {}
    suites: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        if row.teacher_id:
            key = (row.protocol, row.teacher, row.teacher_id)
            last[key] = row
            suites.setdefault(key, {})[row.suite] = None
    facts = []
    for key, row in last.items():
        accuracy, (status, reason, _, version, _) = teacher_accuracy(row, stores)
        if not accuracy:
            status, reason = "missing" if status == "done" else status, f"teacher {reason or 'without classifier'}"
        top1, top5 = (accuracy.top1, accuracy.top5) if accuracy else (None, None)
        for metric, value in _accuracies(top1, top5):
            about = Key(row.teacher_paper, "teacher", row.teacher, "", row.dataset, row.strategy, "", metric)
            beside = (row.teacher_checkpoint, "", tuple(suites[key]))
            facts.append(Fact(about, row.protocol, 0, value, row.teacher_id, status, reason, version, *beside))
    return facts


def once(facts: Iterable[Fact]) -> list[Fact]:
    """The values, those that several suites have of the same run in the same place only once, with all these suites."""
    found: dict[tuple[Key, str, str], Fact] = {}
    for fact in facts:
        place = (fact.about, fact.protocol, fact.run_id)
        before = found.setdefault(place, fact)
        if before.suites != fact.suites:
            found[place] = before._replace(suites=tuple(dict.fromkeys((*before.suites, *fact.suites))))
    return list(found.values())


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
