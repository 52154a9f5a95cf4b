"""Observations: one per run of a suite, as far as it is done, and one per value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import one_line
from kdbench.errors import BadRecord
from kdbench.report.folders import TeacherWeights
from kdbench.report.published import (
    Group,
    Key,
    Pair,
    canonical_setting,
    matched,
    scenario_setting,
    split_method,
    tiny_paper,
)
from kdbench.store.record import Accuracy, Record, Result
from kdbench.store.store import Store
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario, WeightedTerm
from kdbench.suite.suite import Run, Suite


Status = Literal["done", "failed", "started", "missing"]


@dataclass
class Row:
    """A run in a table. Accuracies in percent; ``top1`` follows the protocol's score rule. ``reason`` says why not.

    ``paper`` is set where the run is trained as that paper trains it: its protocol, its weights for the method. A method
    `NAME[key=value]` is one of a sweep: it is the paper's method, but for the weights and hyper-parameters that it varies.
    ``setting`` is that and the scenario in reference.csv's spelling. ``teacher_paper`` is set where the teacher is trained
    as that paper trains it. A tiny run stands where the suite's own would; ``paper`` is then none, but `tiny` and its name.
    ``teacher_top1`` is the teacher's own accuracy as it taught, where its record does not hold it (Result.teacher).
    ``teacher_sha256`` are the teacher's weights in the results folder that gives the run, where there are several, and
    ``teachers`` says on what weights of it folders disagree. ``terms`` are the run's terms with their weights and all their
    hyper-parameters, as JSON.
    """

    suite: str
    protocol: str
    paper: str
    score: str
    dataset: str
    scenario: str
    strategy: str
    teacher: str
    student: str
    method: str
    trial: int
    run_id: str
    teacher_id: str
    status: Status
    reason: str = ""
    top1: float | None = None
    top1_last: float | None = None
    top1_best: float | None = None
    best_epoch: int | None = None
    top5: float | None = None
    top5_last: float | None = None
    version: str = ""
    teacher_checkpoint: str = "last"
    teacher_top1: float | None = None
    teacher_paper: str = ""
    setting: str = ""
    sm_score: float | None = None
    layer_cka: float | None = None
    teacher_sha256: str = ""
    teachers: str = ""
    terms: str = ""

    @property
    def group(self) -> Group:
        return Group(self.suite, self.protocol, self.dataset, self.scenario, self.strategy)

    @property
    def pair(self) -> Pair:
        return self.teacher, self.student

    def about(self, metric: str) -> Key:
        """What a number of it is about, compared with printed ones."""
        return _about(
            self.paper, self.method, self.teacher, self.student, self.dataset, self.strategy, self.setting, metric
        )


@lru_cache(maxsize=4096)
def _about(paper: str, method: str, *rest: str) -> Key:
    return Key(paper, split_method(method)[0], *rest)


def collect(suites: Sequence[Suite], stores: Sequence[Store]) -> list[Row]:
    """Rows of all runs of all suites, in the suites' order. The first store that has a result of a run gives it."""
    shared: dict[tuple[object, ...], dict[str, Any]] = {}
    weights = TeacherWeights(stores)
    rows = []
    for run in (run for suite in suites for run in suite.runs):
        spec = (run.original or run).spec
        parts = (run.protocol, spec.terms, spec.dataset, spec.scenario)  # the same objects in all trials of a cell
        cell = (run.suite, run.method, run.teacher, run.strategy, spec.student, *map(id, parts))
        if cell not in shared:
            shared[cell] = _shared(run)
        rows.append(_row(run, shared[cell], stores, weights))
    return rows


def _shared(run: Run) -> dict[str, Any]:
    """What the trials of a cell have in common."""
    spec, settings = (run.original or run).spec, run.protocol
    varied = split_method(run.method)[1]
    return {
        "suite": run.suite,
        "protocol": run.protocol.name,
        "paper": "" if spec.dataset.val_split else paper_of(run),
        "score": settings.score,
        "dataset": dataset_label(spec.dataset),
        "scenario": scenario_label(spec.scenario),
        "strategy": run.strategy,
        "teacher": run.teacher,
        "student": spec.student,
        "method": run.method,
        "teacher_checkpoint": settings.teacher_checkpoint,
        "teacher_paper": teacher_paper_of(run),
        "setting": ",".join(part for part in (scenario_setting(spec.scenario, settings.paper), varied) if part),
        "terms": terms_text(run.spec.terms),
    }


def terms_text(terms: Sequence[WeightedTerm]) -> str:
    """``{"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}``: also the hyper-parameters that are as usual."""
    found = {}
    for use in terms:
        usual = {name: each.default for name, each in term(use.name, use.source_sha256).hyperparameters.items()}
        found[use.name] = {"weight": use.weight, **usual, **use.hyperparameters}
    return json.dumps(found, ensure_ascii=False)


def _row(run: Run, shared: dict[str, Any], stores: Sequence[Store], weights: TeacherWeights) -> Row:
    spec = (run.original or run).spec
    status, reason, result, version, store = look_up(stores, lambda store: store.run(run.id), "not run")
    differing = weights.differences(run.spec, shared["teacher_checkpoint"])
    accuracy = result.accuracy(shared["score"]) if result else None
    return Row(
        **shared,
        trial=spec.trial,
        run_id=run.id,
        teacher_id=_measured_before(run.spec),
        status=status,
        reason=reason,
        top1=accuracy.top1 if accuracy else None,
        top1_last=result.last.top1 if result and result.last else None,
        top1_best=result.best.top1 if result and result.best else None,
        best_epoch=result.best.epoch if result and result.best else None,
        top5=accuracy.top5 if accuracy else None,
        top5_last=result.last.top5 if result and result.last else None,
        version=version,
        teacher_top1=result.teacher.top1 if result and result.teacher else None,
        sm_score=result.sm_score if result else None,
        layer_cka=result.layer_cka if result else None,
        teacher_sha256=weights.of(spec, store) if store else "",
        teachers=f"{run.teacher} ({differing})" if differing else "",
    )


def _measured_before(spec: RunSpec) -> str:
    """The id of the finished teacher whose own record holds its accuracy as it taught, or ""."""
    teacher = spec.teacher
    alone = teacher and not (spec.head or teacher.source_run or spec.teacher_seen_elsewhere)
    return teacher.id if teacher and alone else ""


def teacher_paper_of(run: Run) -> str:
    """The paper that trains the run's teacher so, or ""."""
    if run.original:
        return tiny_paper(teacher_paper_of(run.original))
    return (run.protocol.paper or "") if run.protocol.name == run.protocol.base else ""


def paper_of(run: Run) -> str:
    """The paper that trains the method so, or ""; one of a sweep has its method's terms with other values."""
    if run.original:
        return tiny_paper(paper_of(run.original))
    protocol, terms = run.protocol, run.spec.terms
    name, varied = split_method(run.method)
    if varied:
        known = bundled_protocol(protocol.base).terms.get(name, ())
        alike = protocol.as_published(name, known) and [use.name for use in known] == [use.name for use in terms]
        alike = alike and _varies_as_it_says(varied, terms)
    else:
        alike = protocol.as_published(name, terms)
    return (protocol.paper or "") if alike else ""


def _varies_as_it_says(varied: str, terms: Sequence[WeightedTerm]) -> bool:
    """Whether a method's terms have the values in its name's brackets, of what the papers' sweeps vary."""
    real: dict[str, Any] = {}
    for use in terms:
        if use.name in ("ega", "sskd"):
            defaults = {name: each.default for name, each in term(use.name).hyperparameters.items()}
            value = {**defaults, **use.hyperparameters}
            if use.name == "ega":
                real |= {"node_weight": use.weight * value["node"], "edge_weight": use.weight * value["edge"]}
            else:
                real |= {"topk": 100 * value["kept_pretext"], "ss_task": value["pretext"]}
    said = dict(part.partition("=")[::2] for part in canonical_setting(varied).split(","))
    return all(canonical_setting(f"{key}={real[key]}") == f"{key}={said[key]}" for key in said.keys() & real.keys())


class State(NamedTuple):
    """How far a run or teacher is, in the first results folder that has its result, or else the last where it was begun."""

    status: Status
    reason: str
    result: Result | None = None
    version: str = ""
    store: Store | None = None


def look_up(stores: Sequence[Store], record_in: Callable[[Store], Record], missing: str) -> State:
    """The state of what ``record_in`` finds in each store; ``missing`` is the reason where it was never begun."""
    found = State("missing", missing)
    for store in stores:
        record = record_in(store)
        try:
            result = record.result()
        except BadRecord as error:
            found = State("failed", f"damaged record: {one_line(str(error))}")
            continue
        if result is not None:
            return State("done", "", result, record.version(), store)
        failure = record.failure()
        if failure is not None:
            found = State("failed", one_line(failure.reason))
        elif record.started():
            found = State("started", f"in training, {len(record.metrics())} epochs so far")
    return found


def teacher_accuracy(row: Row, stores: Sequence[Store]) -> tuple[Accuracy | None, State]:
    """Test accuracy of a row's teacher as it taught, with the weights of its last or best epoch; and how far it is."""
    found = look_up(stores, lambda store: store.teacher(row.teacher_id), "not trained")
    return found.result.accuracy(row.teacher_checkpoint) if found.result else None, found


@cache
def dataset_label(spec: DatasetSpec) -> str:
    """``cifar100``, or ``cifar100 (20 classes, 100 + 50 images each)`` for a part of it.

    It says, too, where accuracies are measured on a part of the training set.
    """
    parts = []
    if spec.classes or spec.train_per_class or spec.test_per_class:
        whole = datasets()[spec.name]
        train, test = spec.split(whole.train // whole.classes, whole.test // whole.classes)
        each = f"{spec.train_per_class or train} + {spec.test_per_class or test} images each"
        parts.append(f"{spec.classes or whole.classes} classes, {each}")
    if spec.size:
        parts.append(f"{spec.size} × {spec.size} pixels")
    if spec.val_split:
        parts.append(f"{_VALIDATION}{100 * spec.val_split:g} % of the training set")
    return f"{spec.name} ({'; '.join(parts)})" if parts else spec.name


_VALIDATION = "validation: "


def measured_on(label: str) -> str:
    """The images on which the accuracies of a data set with this label are measured: ``test`` or ``validation``."""
    return "validation" if _VALIDATION in label else "test"


def scenario_label(scenario: Scenario) -> str:
    """What is done to the training set, in words; empty for nothing."""
    parts = []
    if scenario.fraction < 1:
        parts.append(f"{100 * scenario.fraction:g}% of the labels")
    if scenario.label_noise > 0:
        parts.append(f"{100 * scenario.label_noise:g}% {_NOISE[scenario.noise]}")
    return ", ".join(parts)


_NOISE = {
    "other": "label noise (over the other classes)",
    "all": "label noise (over all classes)",
    "classes": "of the classes renamed",
}


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
