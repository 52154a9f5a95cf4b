"""What is measured on finished networks beside their accuracy, as values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbench.catalogue.printable import one_line
from kdbench.report.facts import Fact, row_fact
from kdbench.report.keys import Key, scenario_setting, split_method, tiny_paper
from kdbench.report.rows import Row, Status, dataset_label, paper_of, teacher_paper_of, terms_text
from kdbench.store.record import Result
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, probe, probe_protocols
from kdbench.suite.specs import DatasetSpec
from kdbench.suite.suite import Measurement, Suite


METRICS = {
    "probe": "linear probe, top-1 in %",
    "kl": "KL, T = 4",
    "kl_t1": "KL, T = 1",
    "cka": "CKA",
    "class_correlation_difference": "|difference| of class correlations",
    "sm_score": "SM-score",
    "layer_cka": "CKA of associated layers",
}
"""What the metrics of measurements are called in tables. Probes are the accuracies whose setting is a transfer."""


_RECORDING = ("semckd", tiny_paper("semckd"))
"""The papers whose tables show what runs record on their way."""


def measurement_facts(suites: Iterable[Suite], stores: Sequence[Store]) -> list[Fact]:
    """The values of all measurements that suites ask for."""
    return [fact for suite in suites for each in suite.measurements for fact in _facts(each, stores)]


def likeness_facts(rows: Iterable[Row]) -> list[Fact]:
    """SM-score and CKA of the layers that methods associate, which the runs of such methods record."""
    facts = []
    for row in rows:
        for metric, value in (("sm_score", row.sm_score), ("layer_cka", row.layer_cka)):
            if value is not None or (row.paper in _RECORDING and row.status != "done"):
                facts.append(row_fact(row, metric, value, "last ten"))
    return facts


def _facts(each: Measurement, stores: Sequence[Store]) -> list[Fact]:
    run, settings, own = each.run, each.run.protocol.settings, each.stands_for or each
    result, status, reason, version = _look_up(each, stores)
    method, varied = split_method(run.method)
    terms = terms_text(run.spec.terms) if each.of == "student" else ""
    student, trial = run.spec.student, run.spec.trial
    trained = (own.run.stands_for or own.run).spec
    paper, parts = paper_of(run), [scenario_setting(trained.scenario, settings.paper), varied]
    if each.of == "teacher":
        method, student, trial, paper, parts = "teacher", "", 0, teacher_paper_of(run), []
    names, undefined = {"kl": "kl_t4"}, (result.undefined if result else None) or {}
    if isinstance(each.spec, ProbeSpec):
        accuracy = result.accuracy(settings.score) if result else None
        values: dict[str, float | None] = {"top1": accuracy.top1 if accuracy else None}
        parts += [f"transfer={own.spec.dataset.name}", _probe_setting(own)]
    else:
        found = (result.values if result else None) or {}
        values = {
            name: found.get(names.get(name, name)) for name in ("kl", "kl_t1", "cka", "class_correlation_difference")
        }
    about = Key(
        paper=paper if trained.dataset == _PAPERS_DATA else "",
        method=method,
        teacher=run.teacher,
        student=student,
        dataset=dataset_label(own.spec.dataset.model_copy(update={"size": None})),
        strategy=run.strategy,
        setting=",".join(part for part in parts if part),
        metric="",
    )
    return [
        Fact(
            about=about._replace(metric=metric),
            protocol=run.protocol.name,
            trial=trial,
            value=value,
            run_id=each.spec.id,
            status=status,
            reason=reason
            or ("" if value is not None else undefined.get(names.get(metric, metric), "not a finite number")),
            version=version,
            score=settings.score if metric == "top1" else "",
            trained_on=dataset_label(trained.dataset),
            suites=(run.suite,),
            terms=terms,
        )
        for metric, value in values.items()
    ]


_PAPERS_DATA = DatasetSpec(name="cifar100")
"""What all networks that the papers measure were trained on."""


def _probe_setting(each: Measurement) -> str:
    """How a probe was trained, where not by the protocol `linear`."""
    if not isinstance(each.spec, ProbeSpec):
        return ""
    for name, how in probe_protocols().items():
        if probe(each.spec.source, each.spec.dataset, how) == each.spec:
            return "" if name == "linear" else f"probe={name}"
    return f"probe=own recipe {each.spec.recipe.id[:4]}"


def _look_up(each: Measurement, stores: Sequence[Store]) -> tuple[Result | None, Status, str, str]:
    for store in stores:
        if result := store.measured(each.spec):
            return result, "done", "", store.measurement(each.spec.id).version()
    for store in stores:
        if failure := store.measurement(each.spec.id).failure():
            return None, "failed", one_line(failure.reason), ""
    return None, "missing", "not measured", ""
