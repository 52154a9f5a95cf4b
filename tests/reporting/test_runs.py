"""Rows: what the stores hold of a suite's runs."""

import math

import pytest

from kdbench.reporting.keys import dataset_label, scenario_label
from kdbench.reporting.observations import collect
from kdbench.reporting.options import View
from kdbench.reporting.tables import grid_tables, render_grid
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, Scenario


TEXT = """
protocol: {protocol}
dataset: {{name: digits, train_per_class: 8}}
trials: 2
grid: {{teacher: resnet8x4, student: resnet8, method: [ce, kd]}}
"""


@pytest.fixture
def suite(load):
    return load(TEXT.format(protocol="smoke"))


def test_every_state_of_a_run(suite, tmp_path, finish):
    store = Store(tmp_path / "results")
    done, failed, started, missing = [store.run(run.id) for run in suite.runs]
    finish(done, versions={"kdbench": "0.1"})
    failed.fail(Failure(kind="diverged", epoch=3, reason="loss is nan\n  in epoch 3"))
    started.write_metrics([{"epoch": 1}])
    started.state_file.write_bytes(b"")
    rows = collect([suite], [store])
    assert list(rows["status"]) == ["done", "failed", "started", "missing"]
    assert list(rows["reason"]) == ["", "loss is nan in epoch 3", "in training, 1 epochs so far", "not run"]
    assert list(rows.loc[0, ["top1", "top1_last", "top1_best", "best_epoch"]]) == [50.0, 50.0, 60.0, 2]
    assert rows["version"][0] == "0.1"
    missing.begin({"a": 1})
    (missing.folder / "result.json").write_text("{")
    row = collect([suite], [store]).loc[3]
    assert row.status == "failed"
    assert row.reason.startswith("damaged record: ")


def test_the_protocol_says_which_epoch_counts(load, tmp_path, finish):
    suite = load(TEXT.format(protocol="{base: smoke, score: best}"))
    store = Store(tmp_path / "results")
    finish(store.run(suite.runs[0].id))
    assert collect([suite], [store])["top1"][0] == 60.0


def test_the_accuracy_of_a_teacher_that_learned_beside_the_student(suite, tmp_path):
    record = Store(tmp_path / "results").run(suite.runs[0].id)
    student, teacher = Accuracy(epoch=2, top1=50.0, top5=90.0), Accuracy(epoch=2, top1=70.0, top5=95.0)
    record.finish(Result(id=record.id, kind="run", last=student, best=student, teacher=teacher, weights_sha256=""), {})
    (accuracy, *others) = collect([suite], [Store(tmp_path / "results")])["teacher_top1"]
    assert accuracy == 70.0
    assert all(map(math.isnan, others))


def test_stores_are_merged_and_the_first_result_counts(suite, tmp_path, finish):
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    finish(first.run(suite.runs[0].id), last=10.0)
    finish(second.run(suite.runs[0].id), last=20.0)
    finish(second.run(suite.runs[1].id), last=30.0)
    first.run(suite.runs[1].id).begin({"a": 1})
    (first.run(suite.runs[1].id).folder / "result.json").write_text("damaged")
    assert list(collect([suite], [first, second])["top1"].dropna()) == [10.0, 30.0]
    assert list(collect([suite], [second, first])["top1"].dropna()) == [20.0, 30.0]


def test_hostile_records(suite, tmp_path, finish):
    store = Store(tmp_path / "results")
    for run in suite.runs:
        finish(store.run(run.id))
        (store.run(run.id).folder / "metadata.json").write_text('{"versions": [1]}')
        (store.run(run.id).folder / "spec.json").write_text("[]")
    assert set(collect([suite], [store])["version"]) == {""}


def test_a_validation_split_is_named_and_its_runs_are_no_papers(load, tmp_path):
    label = "cifar100 (validation: 10 % of the training set)"
    assert dataset_label(DatasetSpec(name="cifar100", val_split=0.1)) == label
    part = DatasetSpec(name="cifar100", classes=20, val_split=0.1, test_per_class=25)
    assert dataset_label(part) == ("cifar100 (20 classes, 450 + 25 images each; validation: 10 % of the training set)")
    text = TEXT.format(protocol="{base: semckd, score: best}").replace("train_per_class: 8", "val_split: 0.1")
    rows = collect([load(text)], [Store(tmp_path / "none")])
    assert set(rows["paper"]) == {""}
    (table,) = grid_tables(rows)
    assert "digits (validation: 10 % of the training set)" in table.group.title
    caption = render_grid(table, View.measured).caption
    assert caption.startswith("Top-1 validation accuracy in %")
    assert "chosen by validation accuracy" in caption
    assert "test" not in caption


def test_labels():
    assert dataset_label(DatasetSpec(name="cifar100")) == "cifar100"
    part = DatasetSpec(name="cifar100", classes=20, train_per_class=100, test_per_class=50)
    assert dataset_label(part) == "cifar100 (20 classes, 100 + 50 images each)"
    assert scenario_label(Scenario()) == ""
    assert scenario_label(Scenario(fraction=0.25, label_noise=0.1)) == (
        "25% of the images, 10% label noise (over the other classes)"
    )
    assert scenario_label(Scenario(label_noise=0.1, noise="all")) == "10% label noise (over all classes)"
    assert scenario_label(Scenario(label_noise=0.1, noise="classes")) == "10% of the classes renamed"
    assert scenario_label(Scenario(fraction=0.254)) != scenario_label(Scenario(fraction=0.25))
    assert scenario_label(Scenario(fraction=0.07)) == "7% of the images"
