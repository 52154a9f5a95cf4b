"""What several results folders hold of the same: the weights of teachers, and where folders disagree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from kdbench.errors import BadRecord
from kdbench.store.record import Record, Result
from kdbench.store.store import Store
from kdbench.suite.specs import RunSpec, Stage, StudentOf, Teacher, stage_label
from kdbench.suite.suite import Suite


class TeacherWeights:
    """What each folder holds of teachers. Nothing is read where there is only one folder."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores if len(stores) > 1 else ()
        self._found: dict[str, list[tuple[Store, Result]]] = {}

    def of(self, spec: RunSpec, store: Store) -> str:
        """SHA-256 of the teacher that a folder has for its run; "" where that is not known."""
        teacher = _named_teacher(spec) if self._stores else None
        found = self._results(teacher) if teacher else []
        return next((result.weights_sha256 for there, result in found if there is store), "")

    def differences(self, spec: RunSpec, score: str) -> str:
        """``75.20 in a, 76.10 in b`` where folders hold different ones of a run's teacher, else ""."""
        teacher = _named_teacher(spec) if self._stores else None
        return disagreement(self._results(teacher), score) if teacher else ""

    def conflicts(self, specs: Iterable[RunSpec]) -> list[str]:
        """One message for each stage of a teacher of which folders hold different weights or accuracies."""
        stages = {stage.id: stage for spec in specs for stage in spec.stages} if self._stores else {}
        found = {stage: disagreement(self._results(stage), stage.checkpoint) for stage in stages.values()}
        return [
            f"teacher {stage_label(stage)} ({stage.id}): {text}; the first is shown, and trials under different ones are not "
            "paired"
            for stage, text in found.items()
            if text
        ]

    def _results(self, teacher: Stage) -> list[tuple[Store, Result]]:
        if teacher.id not in self._found:
            found = [(store, _result(store.record_of(teacher))) for store in self._stores]
            self._found[teacher.id] = [(store, result) for store, result in found if result]
        return self._found[teacher.id]


def disagreement(found: Sequence[tuple[Store, Result]], score: str) -> str:
    """The differing results of one teacher, each with the first folder that has it; "" where all are equal."""
    first: dict[tuple[object, ...], tuple[Store, Result]] = {}
    for store, result in found:
        first.setdefault((result.weights_sha256, result.last, result.best), (store, result))
    if len(first) < 2:
        return ""
    accuracies = [result.accuracy(score) for _, result in first.values()]
    texts = [f"{each.top1:.2f}" if each else "no accuracy" for each in accuracies]
    if len(set(texts)) == 1:
        texts = [f"{text} (weights {key[0]:.8})" for text, key in zip(texts, first, strict=True)]
    return ", ".join(f"{text} in {store.root}" for text, (store, _) in zip(texts, first.values(), strict=True))


def _result(record: Record) -> Result | None:
    try:
        return record.result()
    except BadRecord:
        return None


def _named_teacher(spec: RunSpec) -> Teacher | None:
    """The teacher that the suite names: what teaches may itself be a student of that one."""
    teacher = spec.teacher
    while isinstance(teacher, StudentOf) and teacher.run.teacher:
        teacher = teacher.run.teacher
    return teacher


def conflicts(suites: Sequence[Suite], stores: Sequence[Store]) -> list[str]:
    """One message for each teacher, run and measurement of which stores hold different ones; at most ten, and a count."""
    if len(stores) < 2:
        return []
    specs = [spec for suite in suites for spec in suite.specs.values()]
    found = [*TeacherWeights(stores).conflicts(specs), *_runs(suites, stores), *_measurements(suites, stores)]
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more on which the results folders disagree"] if more > 0 else found


_SHOWN = 10


def _runs(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    for run in {run.id: run for suite in suites for run in suite.runs}.values():
        found: dict[float, str] = {}
        for store in stores:
            result = _result(store.run(run.id))
            if result and (accuracy := result.accuracy(run.protocol.score)):
                found.setdefault(accuracy.top1, f"{accuracy.top1:.2f} in {store.root}")
        yield from _told(f"{run.label} ({run.id})", found.values())


def _measurements(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    for spec in {each.spec.id: each.spec for suite in suites for each in suite.measurements}.values():
        found: dict[str, str] = {}
        for store in stores:
            if result := store.measured(spec):
                found.setdefault(text := _text(result), f"{text} in {store.root}")
        yield from _told(f"{spec.label} ({spec.id})", found.values())


def _told(name: str, found: Collection[str]) -> Iterator[str]:
    if len(found) > 1:
        yield f"{name}: {', '.join(found)}; the first is shown"


def _text(result: Result) -> str:
    """What was measured, in few words."""
    values = result.values or {"top-1": result.last.top1 if result.last else 0.0}
    best = {"best": result.best.top1} if result.best else {}
    return " ".join(f"{name} {value:.4f}" for name, value in {**values, **best}.items())
