"""Measurements in tables: those of the papers, and their own."""

import pytest

from kdbench.report.assemble import measured_report
from kdbench.report.measurements import measurement_facts
from kdbench.report.sheet import plain
from kdbench.report.views import View
from kdbench.store.record import Accuracy, Result
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


def texts(sheet):
    return [[plain(entry.text) for entry in line] for line in sheet.lines]


def line(sheet, label):
    return next(line for line in texts(sheet) if line and line[0] == label)


def test_they_fill_the_papers_tables(measured, store):
    report = measured_report([measured], [store])
    sheets = {sheet.id: sheet for sheet in report.sheets(View.measured) if sheet.id}
    kd = line(sheets["sskd-6"], "KD")
    assert kd[1:3] == ["6.50 ± 0.71 (2)", "0.7000 ± 0.0000 (2)"]
    assert kd[5] == "16.50 ± 0.71 (2)"
    assert kd[3] == "–"
    probes = line(sheets["sskd-S1"], "CIFAR100→STL10")
    assert probes[1:4] == ["70.50 ± 0.71 (2)", "60.00 (1)", "72.50 ± 0.71 (2)"]


def test_what_the_papers_do_not_print_stands_in_tables_of_its_own(measured, store):
    sheets = [
        sheet for sheet in measured_report([measured], [store]).sheets(View.measured) if "measured with" in sheet.title
    ]
    cells = {text for sheet in sheets for row in texts(sheet) for text in row}
    assert {"KL, T = 1", "0.5000 ± 0.0000 (2)", "0.1250 ± 0.0000 (2)"} <= cells
    assert "CKA" not in cells


def test_what_was_not_measured_says_so(load, store):
    facts = measurement_facts([load(SUITE)], [store])
    assert {(fact.status, fact.reason, fact.value) for fact in facts} == {("missing", "not measured", None)}
    assert {fact.metric for fact in facts} == {"top1", "kl", "kl_t1", "cka", "class_correlation_difference"}


def test_a_network_that_was_made_again_has_not_been_measured(measured, store, finish):
    each = measured.measurements[0]
    finish(store.run(each.run.id))
    (fact, *_) = measurement_facts([measured], [store])
    assert fact.status == "done"  # its teacher is not there: nothing says that it was another
    finish(store.teacher(each.run.spec.teacher.id), kind="teacher")
    (fact, *_) = measurement_facts([measured], [store])
    assert fact.status == "missing"


def test_runs_that_record_likeness_fill_semckd_s_table(load, store, finish):
    head = "protocol: semckd\ndataset: cifar100\ntables: semckd-5\ntrials: 1\n"
    suite = load(head + "grid: {teacher: resnet32x4, student: vgg8, method: at}")
    record = store.run(suite.runs[0].id)
    finish(record)
    record.finish(record.result().model_copy(update={"sm_score": 15.5, "layer_cka": 0.9}), {})
    (sheet, *_) = measured_report([suite], [store]).sheets(View.both)
    assert line(sheet, "AT")[1:] == ["15.50 (1) | 15.52", "0.90 (1) | 0.90"]
