"""The results of suites as tidy DataFrames: ``collect`` returns one row per run, ``observations`` one per value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from kdbench.catalogue.text import one_line
from kdbench.errors import BadRecord
from kdbench.reporting.keys import (
    KEY,
    canonical,
    dataset_label,
    paper_of,
    scenario_label,
    scenario_setting,
    split_method,
    teacher_paper_of,
    terms_text,
    tiny_paper,
)
from kdbench.reporting.teacher_weights import TeacherWeights, auxiliary_run
from kdbench.store.record import Record
from kdbench.store.result import Maker, Result
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, probe, probe_protocols
from kdbench.suite.specs import DatasetSpec, RunSpec
from kdbench.suite.suite import Measurement, Run, Suite


Status = Literal["done", "failed", "started", "missing"]

RUN = [
    "suite", "protocol", "paper", "score", "dataset", "scenario", "strategy", "teacher", "student", "method", "trial",
    "run_id", "teacher_id", "status", "reason", "top1", "top1_last", "top1_best", "best_epoch", "top5", "top5_last",
    "version", "teacher_checkpoint", "teacher_top1", "teacher_paper", "setting", "sm_score", "layer_cka", "teacher_sha256",
    "teacher_changed", "teachers", "teacher_stated", "terms", "torch", "device",
]  # fmt: skip
"""The columns of a run."""

_FLOATS = ["top1", "top1_last", "top1_best", "top5", "top5_last", "teacher_top1", "sm_score", "layer_cka"]
_NUMBERS = {"trial": "int64", "best_epoch": "Int64", **dict.fromkeys(_FLOATS, "float64")}

OBSERVATION = [
    "suite", "paper", "protocol", *KEY[1:], "trial", "value", "run_id", "status", "reason", "version", "score",
    "trained_on", "terms",
]  # fmt: skip
"""The columns of an observation."""


def collect(suites: Sequence[Suite], stores: Sequence[Store]) -> pd.DataFrame:
    """One row per run of all suites, in the suites' order, with the columns RUN.

    The first store that has a result of a run provides it. Accuracies are in percent; ``top1`` and ``top5`` follow the
    protocol's score rule. ``status`` is `done`, `failed`, `started` or `missing`, and ``reason`` says why a run is not
    done. ``paper`` is set where the run is trained as that paper trains it: its protocol, its weights for the method. A
    method `NAME[key=value]` is one of a sweep, and the paper's but for the weights and hyperparameters that it varies;
    ``setting`` holds these and the scenario in reference.csv's spelling. ``teacher_paper`` is set where the teacher is
    trained as that paper trains it. A tiny run replaces the suite's own; its paper is `tiny` and the paper's name.
    ``teacher_top1`` is the teacher's accuracy as it taught, where its own record does not hold it, ``teacher_sha256`` the
    hash of the weights that taught, and ``teacher_changed`` says whether the store holds others now. ``teachers`` says
    how several stores' teachers differ, ``teacher_stated`` how the accuracy that a teacher's file states differs from the
    measured one. ``terms`` are the run's terms with their weights and all hyperparameters, as JSON. ``torch`` and ``device``
    name what trained it.
    """
    shared: dict[tuple[object, ...], dict[str, Any]] = {}
    weights = TeacherWeights(stores)
    rows = []
    for run in (run for suite in suites for run in suite.runs):
        spec = run.own.spec
        parts = (run.protocol, spec.terms, spec.dataset, spec.scenario)  # the same objects in all trials of a cell
        cell = (run.suite, run.method, run.teacher, run.strategy, spec.student, *map(id, parts))
        if cell not in shared:
            shared[cell] = _shared(run)
        rows.append(_row(run, shared[cell], stores, weights))
    return run_frame(rows)


def run_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows with the columns RUN as a DataFrame."""
    return pd.DataFrame(rows, columns=RUN).astype({column: _NUMBERS.get(column, "object") for column in RUN})


def _shared(run: Run) -> dict[str, Any]:
    """The columns that all trials of a cell have in common."""
    spec, protocol = run.own.spec, run.protocol
    varied = split_method(run.method)[1]
    return {
        "suite": run.suite,
        "protocol": protocol.name,
        "paper": "" if spec.dataset.val_split else paper_of(run),
        "score": protocol.score,
        "dataset": dataset_label(spec.dataset),
        "scenario": scenario_label(spec.scenario),
        "strategy": run.strategy,
        "teacher": run.teacher,
        "student": str(spec.student),
        "method": run.method,
        "teacher_checkpoint": student.checkpoint if (student := _named_student(spec)) else protocol.teacher_checkpoint,
        "teacher_paper": teacher_paper_of(run),
        "setting": ",".join(part for part in (scenario_setting(spec.scenario, protocol.paper), varied) if part),
        "terms": terms_text(run.spec.terms),
    }


def _row(run: Run, shared: dict[str, Any], stores: Sequence[Store], weights: TeacherWeights) -> dict[str, Any]:
    spec = run.own.spec
    status, reason, result, maker, store = look_up(stores, lambda store: store.run(run.id), "not run")
    differing = weights.differences(run.spec, shared["teacher_checkpoint"])
    stated = weights.contradiction(run.spec, result)
    row = {
        **shared,
        "trial": spec.trial,
        "run_id": run.id,
        "teacher_id": _recorded_teacher(run.spec),
        "status": status,
        "reason": reason,
        "version": maker.kdbench,
        "torch": maker.torch,
        "device": maker.device,
        "teacher_sha256": "",
        "teacher_changed": False,
        "teachers": f"{run.teacher} ({differing})" if differing else "",
        "teacher_stated": f"{run.teacher}: {stated}" if stated else "",
    }
    if result is None or store is None:
        return row
    accuracy, last, best = result.accuracy(shared["score"]), result.last, result.best
    return row | {
        "teacher_sha256": weights.that_taught(spec, result, store),
        "teacher_changed": weights.changed(spec, result, store),
        "top1": accuracy.top1 if accuracy else None,
        "top1_last": last.top1 if last else None,
        "top1_best": best.top1 if best else None,
        "best_epoch": best.epoch if best else None,
        "top5": accuracy.top5 if accuracy else None,
        "top5_last": last.top5 if last else None,
        "teacher_top1": result.teacher.top1 if result.teacher else None,
        "sm_score": result.sm_score,
        "layer_cka": result.layer_cka,
    }


def _recorded_teacher(spec: RunSpec) -> str:
    """The id of the finished teacher whose own record holds its accuracy as it taught, or ""."""
    if spec.teacher is None or spec.head or spec.teacher_seen_elsewhere or auxiliary_run(spec):
        return ""
    student = _named_student(spec)
    return student.id if student else spec.teacher.id


def _named_student(spec: RunSpec) -> RunSpec | None:
    """The run whose student is the teacher that the suite names for a run, if it is one."""
    return spec.teacher.source_run if spec.teacher and not auxiliary_run(spec) else None


class State(NamedTuple):
    """The state of a run or teacher, in the first store that has its result, or else the last where it was begun."""

    status: Status
    reason: str
    result: Result | None = None
    maker: Maker = Maker()
    store: Store | None = None


def look_up(stores: Sequence[Store], record_in: Callable[[Store], Record], missing: str) -> State:
    """The state of the record that ``record_in`` gives for each store; ``missing`` is the reason where none was begun."""
    state = State("missing", missing)
    for store in stores:
        record = record_in(store)
        try:
            result = record.result()
        except BadRecord as error:
            state = State("failed", f"damaged record: {one_line(str(error))}")
            continue
        if result is not None:
            return State("done", "", result, record.made_by(), store)
        failure = record.failure()
        if failure is not None:
            state = State("failed", one_line(failure.reason))
        elif record.has_checkpoint():
            state = State("started", f"in training, {len(record.metrics())} epochs so far")
    return state


def observations(suites: Sequence[Suite], stores: Sequence[Store], runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """All values of suites, one row per suite, network and metric, with the columns OBSERVATION.

    ``paper`` to ``metric`` say what the value is about, in the terms of reference.csv. ``paper`` is empty where the network
    is not trained as a paper trains it. The metric is `top1` (by the protocol's score rule), `top1_error`, `top5_error`,
    each in percent, or another that reference.csv names; ``setting`` tells the run from the default one. A teacher is the
    method `teacher` without a student. ``value`` is NaN unless ``status`` is `done`; then ``reason`` says why. ``score`` is
    `last` or `best` epoch, or the mean of the `last ten`. ``trained_on`` is the data set on which a network was trained
    that was measured on another one. ``runs`` are the suites' from ``collect``, where they are at hand.
    """
    runs = collect(suites, stores) if runs is None else runs
    parts = [
        run_observations(runs),
        teacher_observations(runs, stores),
        measurement_observations(suites, stores),
        layer_similarity_observations(runs),
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def run_observations(runs: pd.DataFrame) -> pd.DataFrame:
    """The accuracies and errors of the students of runs."""
    return _long(runs, _accuracies(runs["top1"], runs["top5"]))


def layer_similarity_observations(runs: pd.DataFrame) -> pd.DataFrame:
    """SM-score and CKA of the layers that methods associate, which the runs of such methods record."""
    found = _long(runs, {"sm_score": runs["sm_score"], "layer_cka": runs["layer_cka"]}, score="last ten")
    recording = found["paper"].isin(["semckd", tiny_paper("semckd")])  # its tables show them
    return found[found["value"].notna() | (recording & (found["status"] != "done"))]


def teacher_observations(runs: pd.DataFrame, stores: Sequence[Store]) -> pd.DataFrame:
    """The accuracies and errors of the teachers of runs, once for each suite."""
    by = ["protocol", "teacher", "teacher_id"]
    taught = runs[runs["teacher_id"] != ""]
    suites = taught.groupby(by, sort=False)["suite"].unique()
    teachers = taught.drop_duplicates(by, keep="last").set_index(by).loc[suites.index].reset_index()
    ids = zip(teachers["teacher_id"], teachers["teacher_checkpoint"], strict=True)
    states = [_teacher_state(id, checkpoint, stores) for id, checkpoint in ids]
    columns = ["status", "reason", "version", "top1", "top5"]
    teachers[columns] = pd.DataFrame(states, columns=columns, index=teachers.index)
    teachers = teachers.assign(
        suite=list(suites), paper=teachers["teacher_paper"], score=teachers["teacher_checkpoint"],
        method="teacher", student="", setting="", trial=0, run_id=teachers["teacher_id"], terms="",
    ).explode("suite", ignore_index=True)  # fmt: skip
    accuracies = teachers[["top1", "top5"]].astype(float)
    return _long(teachers, _accuracies(accuracies["top1"], accuracies["top5"]))


def _teacher_state(id: str, checkpoint: str, stores: Sequence[Store]) -> tuple[Any, ...]:
    """Status, reason, version and test accuracies of a teacher with the weights of its last or best epoch."""
    run = any(store.run(id).has_result_file() for store in stores)
    status, reason, result, maker, _ = look_up(
        stores, lambda store: store.run(id) if run else store.teacher(id), "not trained"
    )
    accuracy = result.accuracy(checkpoint) if result else None
    if accuracy:
        return status, reason, maker.kdbench, accuracy.top1, accuracy.top5
    return (
        "missing" if status == "done" else status,
        f"teacher {reason or 'without classifier'}",
        maker.kdbench,
        None,
        None,
    )


def _accuracies(top1: pd.Series, top5: pd.Series) -> dict[str, pd.Series]:
    return {"top1": top1, "top1_error": 100 - top1, "top5_error": 100 - top5}


def _long(runs: pd.DataFrame, metrics: dict[str, pd.Series], **changes: Any) -> pd.DataFrame:
    """One observation per row and metric."""
    repeated = runs.loc[runs.index.repeat(len(metrics))].reset_index(drop=True)
    return repeated.assign(
        method=[split_method(method)[0] for method in repeated["method"]],
        metric=list(metrics) * len(runs),
        value=np.column_stack(list(metrics.values())).ravel(),
        trained_on="",
        **changes,
    )[OBSERVATION]


def measurement_observations(suites: Iterable[Suite], stores: Sequence[Store]) -> pd.DataFrame:
    """The values of all measurements that suites ask for."""
    rows = [row for suite in suites for each in suite.measurements for row in _measurement(each, stores)]
    return pd.DataFrame(rows, columns=OBSERVATION).astype({"value": float})


def _measurement(each: Measurement, stores: Sequence[Store]) -> Iterator[dict[str, Any]]:
    run, protocol, own = each.run, each.run.protocol, each.own
    result, status, reason, version = _measurement_state(each, stores)
    trained = own.run.spec
    method, varied = split_method(run.method)
    if each.of == "teacher":
        method, student, trial, paper, parts, terms = "teacher", "", 0, teacher_paper_of(run), [], ""
    else:
        student, trial, paper, terms = str(run.spec.student), run.spec.trial, paper_of(run), terms_text(run.spec.terms)
        parts = [scenario_setting(trained.scenario, protocol.paper), varied]
    undefined = (result.undefined if result else None) or {}
    values: dict[str, float | None]
    if isinstance(each.spec, ProbeSpec):
        accuracy = result.accuracy(protocol.score) if result else None
        values = {"top1": accuracy.top1 if accuracy else None}
        parts = [*parts, f"transfer={own.spec.dataset.name}", _probe_setting(own)]
    else:
        recorded = (result.values if result else None) or {}
        values = {metric: recorded.get(name) for metric, name in _RECORDED.items()}
    for metric, value in values.items():
        lacking = "" if value is not None else undefined.get(_RECORDED.get(metric, metric), "not a finite number")
        yield {
            "suite": run.suite,
            "paper": paper if trained.dataset == _PAPERS_DATA else "",
            "protocol": run.protocol.name,
            "method": method,
            "teacher": run.teacher,
            "student": student,
            "dataset": dataset_label(own.spec.dataset.model_copy(update={"size": None})),
            "strategy": run.strategy,
            "setting": ",".join(part for part in parts if part),
            "metric": metric,
            "trial": trial,
            "value": value,
            "run_id": each.spec.id,
            "status": status,
            "reason": reason or lacking,
            "version": version,
            "score": protocol.score if metric == "top1" else "",
            "trained_on": dataset_label(trained.dataset),
            "terms": terms,
        }


_RECORDED = {"kl": "kl_t4", **{name: name for name in ("kl_t1", "cka", "class_correlation_difference")}}
"""The names of the metrics of similarity in records."""
_PAPERS_DATA = DatasetSpec(name="cifar100")
"""The data set on which all networks that the papers measure were trained."""


def _probe_setting(each: Measurement) -> str:
    """``probe=NAME`` unless the probe was trained by the protocol `linear`."""
    if not isinstance(each.spec, ProbeSpec):
        return ""
    for name, recipe in probe_protocols().items():
        if probe(each.spec.source, each.spec.dataset, recipe) == each.spec:
            return "" if name == "linear" else f"probe={name}"
    return f"probe=own recipe {each.spec.recipe.id[:4]}"


def _measurement_state(each: Measurement, stores: Sequence[Store]) -> tuple[Result | None, Status, str, str]:
    for store in stores:
        if result := store.measured(each.spec):
            return result, "done", "", store.measurement(each.spec.id).version()
    for store in stores:
        if failure := store.measurement(each.spec.id).failure():
            return None, "failed", one_line(failure.reason), ""
    return None, "missing", "not measured", ""


def comparable(observations: pd.DataFrame) -> pd.DataFrame:
    """The observations that can stand next to published ones, by canonical KEY, those of one run once."""
    known = observations[observations["paper"] != ""]
    return canonical(known).drop_duplicates([*KEY, "run_id"])
