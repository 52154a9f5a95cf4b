"""Published numbers stand beside what was trained as the paper trains it, and beside nothing else."""

import pytest

from kdbench.reporting.keys import reference
from kdbench.reporting.observations import collect, run_frame
from kdbench.reporting.tables import grid_cells
from kdbench.suite.suite import tiny_suite


def published(runs):
    """The published number of the only cell of the runs' table, or None."""
    (text,) = grid_cells(runs)["printed"]
    return text or None


def test_the_reference_is_whole():
    assert len(reference()) == 873
    assert set(reference()["paper"]) == {"ega", "sskd", "semckd"}


@pytest.mark.parametrize(
    ("paper", "method", "teacher", "student", "strategy", "text"),
    [
        ("semckd", "kd", "resnet32x4", "resnet8x4", "pretrained", "74.42 ± 0.05"),
        ("semckd", "at", "resnet32x4", "resnet8x4", "pretrained", "75.07 ± 0.03"),
        ("semckd", "ce", "resnet32x4", "resnet8x4", "pretrained", "73.09 ± 0.30"),
        ("semckd", "ce", "", "resnet8x4", "pretrained", "73.09 ± 0.30"),
        ("sskd", "kd", "vgg13", "mobilenetv2", "pretrained", "67.37"),
        ("sskd", "kd", "resnet50", "vgg8", "pretrained", "73.81"),
        ("sskd", "ce", "wrn-40-2", "shufflenetv1", "pretrained", "70.77"),
        ("ega", "rkd", "clip-vit-b32", "resnet8x4", "sequential", "73.36"),
        ("ega", "kd", "clip-vit-b32", "resnet8x4", "simultaneous", "71.55"),
    ],
)
def test_cells(row, paper, method, teacher, student, strategy, text):
    place = row(paper=paper, protocol=paper, method=method, teacher=teacher, student=student, strategy=strategy)
    assert published(run_frame([place])) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"paper": ""}, {"setting": "fewshot=0.25"}, {"dataset": "cifar100 (20 classes, 100 + 50 images each)"},
        {"method": "mine"}, {"teacher": "vgg19"}, {"student": "vgg19"}, {"strategy": "sequential"}, {"paper": "crd"},
    ],
)  # fmt: skip
def test_nothing_is_published_for_other_settings(row, changes):
    assert published(run_frame([row(**({"paper": "semckd"} | changes))])) is None


SUITE = """
protocol: {protocol}
dataset: {dataset}
trials: 1
grid: {{teacher: resnet32x4, student: {student}, method: {method}, scenario: {scenario}}}
"""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "74.42 ± 0.05"),
        ({"protocol": "{base: semckd, trials: 1}"}, "74.42 ± 0.05"),
        ({"dataset": "{name: cifar100, classes: 100}"}, "74.42 ± 0.05"),
        ({"method": "{name: kd, terms: {kd: 1, ce: 1}}"}, "74.42 ± 0.05"),
        ({"method": "{name: kd, terms: {kd: 0.9, ce: 0.1}}"}, None),
        ({"protocol": "{base: semckd, epochs: 20}"}, None),
        ({"dataset": "{name: cifar100, val_split: 0.1}"}, None),
        ({"protocol": "{base: semckd, score: last}"}, None),
        ({"protocol": "{base: semckd, methods: {kd: {ce: 1, kd: 2}}}"}, None),
        ({"protocol": "{base: crd, paper: semckd}"}, None),
        ({"protocol": "crd"}, None),
        ({"dataset": "{name: cifar100, classes: 20}"}, None),
        ({"dataset": "{name: cifar100, train_per_class: 100}"}, None),
        ({"dataset": "digits"}, None),
        ({"scenario": "{fraction: 0.5}"}, None),
        ({"scenario": "{fraction: 0.5}", "student": "vgg8"}, "67.16 ± 0.14"),
        ({"scenario": "{fraction: 0.4}", "student": "vgg8"}, None),
        ({"scenario": "{label_noise: 0.1, noise: all}", "student": "vgg8"}, "71.39 ± 0.33"),
        ({"scenario": "{label_noise: 0.1}"}, None),
    ],
)
def test_from_a_suite(load, changes, text):
    values = {
        "protocol": "semckd",
        "dataset": "cifar100",
        "method": "kd",
        "scenario": "{fraction: 1.0}",
        "student": "resnet8x4",
    } | changes
    assert published(collect([load(SUITE.format(**values))], [])) == text


def test_tiny_runs_are_no_papers(load):
    suite = load(SUITE.format(protocol="semckd", dataset="cifar100", method="kd", scenario="{}", student="vgg8"))
    row = collect([tiny_suite(suite)], []).iloc[0]
    assert (row["paper"], row["teacher_paper"]) == ("tiny semckd", "tiny semckd")
