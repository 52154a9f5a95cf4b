"""What results folders disagree about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kdbench.report.rows import collect
from kdbench.report.teacher_weights import TeacherWeights
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


_SHOWN = 10


def conflicts(suites: Sequence[Suite], stores: Sequence[Store]) -> list[str]:
    """One message for each teacher, run and measurement of which stores hold different ones; at most ten, and a count."""
    if len(stores) < 2:
        return []
    specs = [spec for suite in suites for spec in suite.specs.values()]
    found = [*TeacherWeights(stores).conflicts(specs), *_runs(suites, stores), *_measurements(suites, stores)]
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more on which the results folders disagree"] if more > 0 else found


def _runs(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    found: dict[str, dict[float, Store]] = {}
    labels = {run.id: run.label for suite in suites for run in suite.runs}
    for store in stores:
        for row in collect(suites, [store]):
            if row.top1 is not None:
                found.setdefault(row.run_id, {}).setdefault(row.top1, store)
    for id, values in found.items():
        if len(values) > 1:
            texts = ", ".join(f"{value:.2f} in {store.root}" for value, store in values.items())
            yield f"{labels[id]} ({id}): {texts}; the first is shown"


def _measurements(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    for spec in {each.spec.id: each.spec for suite in suites for each in suite.measurements}.values():
        found: dict[str, Store] = {}
        for store in stores:
            if result := store.measured(spec):
                found.setdefault(_text(result), store)
        if len(found) > 1:
            texts = ", ".join(f"{text} in {store.root}" for text, store in found.items())
            yield f"{spec.label} ({spec.id}): {texts}; the first is shown"


def _text(result: Result) -> str:
    """What was measured, in few words."""
    values = result.values or {"top-1": result.last.top1 if result.last else 0.0}
    best = {"best": result.best.top1} if result.best else {}
    return " ".join(f"{name} {value:.4f}" for name, value in {**values, **best}.items())
