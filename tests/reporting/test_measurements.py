"""Measurements in tables: those of the papers, and their own."""

import json
from dataclasses import replace

import pytest

from kdbench.errors import KdbenchError
from kdbench.reporting.csv_json import json_text
from kdbench.reporting.observations import measurement_observations
from kdbench.reporting.options import Bold, Format, ReportOptions, View
from kdbench.reporting.rendered import plain
from kdbench.reporting.report import measured_report
from kdbench.reporting.writers import write_report
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec


SUITE = """
protocol: sskd
dataset: cifar100
tables: [sskd-6, sskd-S1]
trials: 2
grid:
  - {teacher: vgg13, student: vgg8, method: [kd, crd], measure: {similarity: [cifar100, svhn]}}
  - {teacher: wrn-40-2, student: shufflenetv1, method: [ce, kd], measure: {probe: [stl10]}}
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def measured(store, load):
    """Every measurement of the suite with numbers that tell where they come from."""
    suite = load(SUITE)
    for each in suite.measurements:
        record, trial = store.measurement(each.spec.id), each.run.spec.trial
        facts = {"id": record.id, "kind": "measurement", "weights_sha256": "0" * 64}
        if isinstance(each.spec, ProbeSpec):
            top1 = {"teacher": 60.0, "ce": 70.0 + trial, "kd": 72.0 + trial}
            best = Accuracy(epoch=1, top1=top1["teacher" if each.of == "teacher" else each.run.method], top5=99.0)
            result = Result(last=Accuracy(epoch=2, top1=1.0, top5=99.0), best=best, **facts)
        else:
            base = {"kd": 6.0, "crd": 5.0}[each.run.method] + (each.spec.dataset.name == "svhn") * 10
            values = {"kl_t4": base + trial, "kl_t1": 0.5, "cka": 0.7, "class_correlation_difference": 0.125}
            result = Result(values=values, **facts)
        record.finish(result, {})
    return suite


def texts(table):
    return [[plain(entry.text) for entry in line] for line in table.lines]


def line(table, label):
    return next(line for line in texts(table) if line and line[0] == label)


def test_they_fill_the_papers_tables(measured, store):
    report = measured_report([measured], [store])
    tables = {table.id: table for table in report.tables(ReportOptions(View.measured)) if table.id}
    kd = line(tables["sskd-6"], "KD")
    assert kd[1:3] == ["6.50 ± 0.71 (2)", "0.7000 ± 0.0000 (2)"]
    assert kd[5] == "16.50 ± 0.71 (2)"
    assert kd[3] == "–"
    probes = line(tables["sskd-S1"], "CIFAR100→STL10")
    assert probes[1:4] == ["70.50 ± 0.71 (2)", "60.00 (1)", "72.50 ± 0.71 (2)"]


def test_what_the_papers_do_not_print_stands_in_tables_of_its_own(measured, store):
    tables = [
        table
        for table in measured_report([measured], [store]).tables(ReportOptions(View.measured))
        if "measured with" in table.title
    ]
    cells = {text for table in tables for row in texts(table) for text in row}
    assert {"KL, T = 1", "0.5000 ± 0.0000 (2)", "0.1250 ± 0.0000 (2)"} <= cells
    assert "CKA" not in cells


@pytest.mark.parametrize(
    ("undefined", "reason"),
    [
        ({"cka": "the same embedding for all images"}, "the same embedding for all images"),
        (None, "not a finite number"),
    ],
)
def test_what_is_not_defined_says_why(measured, store, undefined, reason):
    for each in measured.measurements:
        record = store.measurement(each.spec.id)
        if values := record.result().values:
            rest = {name: value for name, value in values.items() if name != "cka"}
            record.finish(record.result().model_copy(update={"values": rest, "undefined": undefined}), {})
    values = measurement_observations([measured], [store])
    assert set(values["reason"][values["metric"] == "cka"]) == {reason}
    notes = [
        note
        for table in measured_report([measured], [store]).tables(ReportOptions(View.measured))
        for note in table.notes
    ]
    assert any(reason in note for note in notes)


def test_what_was_not_measured_says_so(load, store):
    values = measurement_observations([load(SUITE)], [store])
    assert set(values["status"] + ": " + values["reason"]) == {"missing: not measured"}
    assert values["value"].isna().all()
    assert set(values["metric"]) == {"top1", "kl", "kl_t1", "cka", "class_correlation_difference"}


def test_a_network_that_was_made_again_has_not_been_measured(measured, store, finish):
    each = measured.measurements[0]
    finish(store.run(each.run.id))
    assert (
        measurement_observations([measured], [store])["status"][0] == "done"
    )  # its teacher is not there: nothing says that it was another
    finish(store.teacher(each.run.spec.teacher.id), kind="teacher")
    assert measurement_observations([measured], [store])["status"][0] == "missing"


def test_runs_that_record_likeness_fill_semckd_s_table(load, store, finish):
    head = "protocol: semckd\ndataset: cifar100\ntables: semckd-5\ntrials: 1\n"
    suite = load(head + "grid: {teacher: resnet32x4, student: vgg8, method: at}")
    record = store.run(suite.runs[0].id)
    finish(record)
    record.finish(record.result().model_copy(update={"sm_score": 15.5, "layer_cka": 0.9}), {})
    (table, *_) = measured_report([suite], [store]).tables(ReportOptions(View.both))
    assert line(table, "AT")[1:] == ["15.50 (1) | 15.52", "0.90 (1) | 0.90"]
    assert "protocol semckd; mean over the last ten epochs; 1 trial" in table.caption
    assert "best epoch" not in table.caption


def test_their_tables_say_how_and_why_they_are_short(measured, store):
    first = measured.measurements[0]
    (store.measurement(first.spec.id).folder / "result.json").unlink()
    report = measured_report([replace(measured, tables=())], [store])
    tables = {table.title: table for table in report.measurement_tables(View.both)}
    likeness, probes = (
        tables["measured with vgg13, pretrained teacher, trained on cifar100"],
        tables["measured with wrn-40-2, pretrained teacher, trained on cifar100"],
    )
    assert probes.caption == (
        "Measured on finished networks, mean ± sd (n); protocol sskd; probes by best epoch, chosen by test accuracy; "
        "2 trials; version unknown (5)."
    )
    assert "1-2 trials" in likeness.caption
    assert "probes" not in likeness.caption
    assert likeness.notes[0].endswith("on cifar100 KL, T = 1 and 2 more: not measured (1 of 2)")
    cells = [cell for cell in json.loads(json_text(report, 0.5))["cells"] if cell.get("metric") == "CKA"]
    assert {(cell["dataset"], cell["n"]) for cell in cells} == {("cifar100", 1), ("cifar100", 2), ("svhn", 2)}
    assert not report.measurement_tables(View.verdict)


def test_incompatible_versions_of_measurements_are_refused(measured, store):
    for each, version in zip(measured.measurements, ("0.1.0", "0.2.0"), strict=False):
        record = store.measurement(each.spec.id)
        record.finish(record.result(), {"versions": {"kdbench": version}})
    suite = replace(measured, tables=())
    with pytest.raises(KdbenchError, match="measured with vgg13"):
        measured_report([suite], [store])
    assert measured_report([suite], [store], mix_versions=True).measurements


def test_separable_marks_stay_in_the_tables_of_accuracies(measured, store):
    report = measured_report([replace(measured, tables=())], [store])
    text = write_report(report, Format.markdown, ReportOptions(bold=Bold.separable))
    assert text.index("Bold: the best") < text.index("measured with")
    assert "Bold: the best" not in text[text.index("measured with") :]


def test_the_page_shows_them(measured, store):
    suite = replace(measured, tables=())
    report = measured_report([suite], [store])
    assert "measured with vgg13, pretrained teacher, trained on cifar100" in write_report(report, Format.html)
    assert "measured with vgg13" not in write_report(report, Format.html, ReportOptions(View.verdict))
