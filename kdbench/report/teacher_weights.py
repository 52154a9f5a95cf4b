"""Which weights of a teacher the runs of several results folders learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbench.errors import BadRecord
from kdbench.store.record import Result
from kdbench.store.store import Store
from kdbench.suite.specs import RunSpec, TeacherSpec


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
            f"teacher {stage.label} ({stage.id}): {text}; the first is shown, and trials under different ones are not paired"
            for stage, text in found.items()
            if text
        ]

    def _results(self, teacher: TeacherSpec) -> list[tuple[Store, Result]]:
        if teacher.id not in self._found:
            found = [(store, _result(store, teacher)) for store in self._stores]
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


def _result(store: Store, teacher: TeacherSpec) -> Result | None:
    try:
        return store.record_of(teacher).result()
    except BadRecord:
        return None


def _named_teacher(spec: RunSpec) -> TeacherSpec | None:
    """The teacher that the suite names: what teaches may itself be a student of that one."""
    teacher = spec.teacher
    while teacher and teacher.student and teacher.student.teacher:
        teacher = teacher.student.teacher
    return teacher
