"""Measurements on finished networks, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kdbench.catalogue.text import one_line
from kdbench.report.captions import caption, empty_cells, provenance, score_rules
from kdbench.report.cells import Cell, cell_text, make_cell
from kdbench.report.observations import (
    Fact,
    Row,
    Status,
    dataset_label,
    paper_of,
    row_fact,
    teacher_paper_of,
    terms_text,
)
from kdbench.report.options import View
from kdbench.report.published import Key, scenario_setting, split_method, tiny_paper
from kdbench.report.sheet import Band, Entry, Sheet
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
    run, settings, own = each.run, each.run.protocol, each.original or each
    result, status, reason, version = _look_up(each, stores)
    method, varied = split_method(run.method)
    terms = terms_text(run.spec.terms) if each.of == "student" else ""
    student, trial = run.spec.student, run.spec.trial
    trained = (own.run.original or own.run).spec
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


Column = tuple[str, str]
"""A data set, and what is measured on it."""


@dataclass
class MeasurementTable:
    """What was measured with one teacher: methods down, data sets and metrics across."""

    protocol: str
    teacher: str
    strategy: str
    trained_on: str
    facts: list[Fact] = field(default_factory=list)

    @property
    def title(self) -> str:
        taught = f" with {self.teacher}, {self.strategy} teacher" if self.teacher else ""
        return f"measured{taught}, trained on {self.trained_on}"

    @property
    def cells(self) -> dict[tuple[str, Column], Cell]:
        """By method with its student, and column; only where something was to be measured."""
        found: dict[tuple[str, Column], list[Fact]] = {}
        for fact in self.facts:
            found.setdefault((_row(fact), _column(fact)), []).append(fact)
        return {place: make_cell([(f.trial, f.value, f.reason) for f in facts]) for place, facts in found.items()}

    @property
    def versions(self) -> list[str]:
        """The version behind each measurement that was made."""
        return list({fact.run_id: fact.version for fact in self.facts if fact.value is not None}.values())


def measurement_tables(facts: Iterable[Fact]) -> list[MeasurementTable]:
    """One table for each protocol, teacher, strategy and data set. What several suites ask for counts once."""
    tables: dict[tuple[str, str, str, str], MeasurementTable] = {}
    places = {(_table(fact), fact.run_id, fact.about.metric, _row(fact)): fact for fact in facts}
    for (key, *_), fact in places.items():
        tables.setdefault(key, MeasurementTable(*key)).facts.append(fact)
    return list(tables.values())


def measurement_sheet(table: MeasurementTable) -> Sheet:
    """A table as lines of text. The papers print nothing of this: there is one view."""
    cells, columns = table.cells, list(dict.fromkeys(_column(fact) for fact in table.facts))
    lines = [
        (Entry(row), *(Entry(_text(cells.get((row, column)), column)) for column in columns))
        for row in dict.fromkeys(_row(fact) for fact in table.facts)
    ]
    header = (
        (Entry(""), *(Entry(dataset) for dataset, _ in columns)),
        (Entry("method"), *(Entry(metric) for _, metric in columns)),
    )
    students = {_row(fact) for fact in table.facts if fact.about.method != "teacher"}
    trials = [cell.n for (row, _), cell in cells.items() if row in students]
    rules = score_rules(fact.score for fact in table.facts if fact.score)
    origin = provenance([table.protocol], [f"probes by {rules}"] if rules else [], trials, table.versions)
    return Sheet(
        table.title,
        (Band(header, (tuple(lines),)),),
        caption=caption("Measured on finished networks", View.measured, origin, 0, compared=False),
        notes=tuple(empty_cells((f"{row} on {' '.join(column)}", cell.note) for (row, column), cell in cells.items())),
    )


def _table(fact: Fact) -> tuple[str, str, str, str]:
    return fact.protocol, fact.about.teacher, fact.about.strategy, fact.trained_on


def _column(fact: Fact) -> Column:
    name = "probe" if "transfer=" in fact.about.setting else fact.about.metric
    return fact.about.dataset, METRICS[name]


def _row(fact: Fact) -> str:
    setting = ", ".join(part for part in fact.about.setting.split(",") if part and not part.startswith("transfer="))
    named = f"{fact.about.method} ({setting})" if setting else fact.about.method
    return f"{named} → {fact.about.student}" if fact.about.student else named


def _text(cell: Cell | None, column: Column) -> str:
    return cell_text(cell, View.measured, decimals=2 if column[1] == METRICS["probe"] else 4)
