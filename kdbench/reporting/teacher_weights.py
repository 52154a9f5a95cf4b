"""The weights of teachers: those that taught runs, those that several stores hold, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbench.errors import BadRecord
from kdbench.store.record import Record
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.suite.methods import auxiliary_method
from kdbench.suite.specs import Imported, RunSpec, Stage, stage_label


def auxiliary_run(spec: RunSpec) -> RunSpec | None:
    """The run between a run and the teacher that the suite names, if its method trains one."""
    between = spec.teacher.source_run if spec.teacher else None
    return between if auxiliary_method(spec.terms) else None


class TeacherWeights:
    """The weights of teachers: those that taught runs, and those that each of several stores holds."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self._found: dict[str, list[tuple[Store, Result]]] = {}

    def that_taught(self, spec: RunSpec, result: Result, store: Store) -> str:
        """SHA-256 of the weights of the teacher that the suite names for a run; "" where it is not known."""
        if between := auxiliary_run(spec):
            auxiliary = valid_result(store.run(between.id))
            return self.that_taught(between, auxiliary, store) if auxiliary else ""
        return (result.parent_sha256 or "").partition("+")[0]

    def changed(self, spec: RunSpec, result: Result, store: Store) -> bool:
        """Whether a run's store holds other weights of its teacher than those that taught it."""
        there = self._results(spec.teacher) if spec.teacher and result.parent_sha256 else []
        now = [found.weights_sha256 for holder, found in there if holder is store]
        return bool(now) and (result.parent_sha256 or "").partition("+")[0] not in now

    def differences(self, spec: RunSpec, score: str) -> str:
        """``75.20 in a, 76.10 in b`` where the stores' weights of a run's teacher differ, else ""."""
        teacher = (auxiliary_run(spec) or spec).teacher if len(self._stores) > 1 else None
        return disagreement(self._results(teacher), score) if teacher else ""

    def contradiction(self, spec: RunSpec, result: Result | None) -> str:
        """How the accuracy of a run's teacher, as it taught, contradicts what its imported file states; "" if it does not."""
        if not isinstance(spec.teacher, Imported) or spec.head:
            return ""
        here = None if spec.teacher_seen_elsewhere else spec.teacher
        for _, imported in self._results(spec.teacher):
            shown = (result and result.teacher) or (imported.last if here else None)
            if text := imported.contradiction(shown):
                return text
        return ""

    def conflicts(self, specs: Iterable[RunSpec]) -> list[str]:
        """One message for each stage of a teacher whose weights or accuracies differ between stores."""
        stages = {stage.id: stage for spec in specs for stage in spec.stages}
        found = {stage: disagreement(self._results(stage), stage.checkpoint) for stage in stages.values()}
        return [
            f"teacher {stage_label(stage)} ({stage.id}): {text}; the first is shown, "
            "and trials under different ones are not paired"
            for stage, text in found.items()
            if text
        ]

    def _results(self, teacher: Stage) -> list[tuple[Store, Result]]:
        if teacher.id not in self._found:
            found = [(store, valid_result(store.record_of(teacher))) for store in self._stores]
            self._found[teacher.id] = [(store, result) for store, result in found if result]
        return self._found[teacher.id]


def disagreement(found: Sequence[tuple[Store, Result]], score: str) -> str:
    """The differing results of one teacher, each with the first store that has it; "" where all are equal."""
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


def valid_result(record: Record) -> Result | None:
    """The result, or None where there is none or it is damaged."""
    try:
        return record.result()
    except BadRecord:
        return None
