"""What training costs: by hand for one case, and what is measured."""

import json

import pytest

from kdbench.catalogue.networks import network
from kdbench.planning.cost import (
    cohort_cost,
    image_counts,
    measured_speed,
    measurement_cost,
    student_cost,
    teacher_cost,
    teacher_pass_cost,
)
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    Imported,
    NewLayers,
    Recipe,
    RunSpec,
    Scenario,
    Supervised,
    WeightedTerm,
    Weights,
)


RECIPE = Recipe(epochs=10, batch=64, lr=0.1, evaluate_every=4)
CIFAR = DatasetSpec(name="cifar100")
TEACHER = Supervised(network="vgg13", dataset=CIFAR, recipe=RECIPE)
RUN = RunSpec(student="vgg8", teacher=TEACHER, terms=(WeightedTerm(name="kd"),), dataset=CIFAR, recipe=RECIPE)
VGG8, VGG13 = 96_192_512, 284_936_192


def test_by_hand():
    assert (network("vgg8").macs, network("vgg13").macs) == (VGG8, VGG13)
    # 10 epochs of 50,000 images forward and backward (three passes), and tests of 10,000 after epochs 4, 8 and 10
    student = (3 * 10 * 50_000 + 3 * 10_000) * VGG8
    assert student_cost(RUN) == student
    assert teacher_pass_cost(RUN) == 10 * 50_000 * VGG13
    assert cohort_cost([RUN, RUN, RUN]) == 3 * student + 10 * 50_000 * VGG13
    assert teacher_cost(TEACHER) == (3 * 10 * 50_000 + 3 * 10_000) * VGG13


def test_a_head_costs_one_pass_of_the_backbone():
    head = HeadSpec(width=256, recipe=RECIPE.model_copy(update={"epochs": 2}))
    assert teacher_cost(NewLayers(parent=TEACHER, dataset=CIFAR, head=head)) == (2 * 50_000 + 10_000) * VGG13


def test_few_shots_cost_less_but_for_the_tests():
    few = RUN.model_copy(update={"scenario": Scenario(fraction=0.1)})
    assert student_cost(few) == (3 * 10 * 5_000 + 3 * 10_000) * VGG8
    assert teacher_pass_cost(few) == 10 * 5_000 * VGG13


def test_an_initial_stage_costs_its_epochs_and_no_tests():
    ab = RUN.model_copy(update={"terms": (WeightedTerm(name="ab"), WeightedTerm(name="ce"))})
    assert student_cost(ab) == (3 * (10 + 30) * 50_000 + 3 * 10_000) * VGG8
    assert teacher_pass_cost(ab) == (10 + 30) * 50_000 * VGG13
    short = ab.model_copy(update={"terms": (WeightedTerm(name="fsp", hyperparameters={"initial_epochs": 2}),)})
    assert teacher_pass_cost(short) == (10 + 2) * 50_000 * VGG13


def test_image_counts():
    assert image_counts(CIFAR) == (50_000, 10_000)
    assert image_counts(DatasetSpec(name="digits")) == (1000, 797)
    assert image_counts(DatasetSpec(name="cifar100", classes=20, train_per_class=100, test_per_class=50)) == (
        2000,
        1000,
    )
    assert image_counts(CIFAR, 0.25) == (12_500, 10_000)
    assert image_counts(DatasetSpec(name="cifar100", val_split=0.1)) == (45_000, 5_000)
    assert image_counts(DatasetSpec(name="cifar100", val_split=0.1, classes=20, train_per_class=100)) == (2000, 1000)


def test_no_teacher_no_pass():
    assert teacher_pass_cost(RUN.model_copy(update={"teacher": None})) == 0
    assert cohort_cost([]) == 0


def test_the_speed_is_measured_from_finished_runs_and_junk_is_left_out(tmp_path):
    junk = ["[]", "{", '{"device": 3}', '{"device": {"kind": "tpu"}, "macs": 1, "seconds": 1}', "[" * 100_000,
            '{"device": {"kind": "cpu"}, "macs": "x", "seconds": 1}',
            '{"device": {"kind": "cpu"}, "macs": 0, "seconds": 9}',
            '{"device": {"kind": "cpu"}, "macs": 1, "seconds": 0}']  # fmt: skip
    good = [
        json.dumps({"device": {"kind": "cpu"}, "macs": macs, "seconds": seconds})
        for macs, seconds in ((4e9, 0.5), (8e9, 3.5))
    ]
    for index, text in enumerate([*junk, *good]):
        folder = tmp_path / "runs" / f"{index:012d}"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(text)
    assert measured_speed(Store(tmp_path)) == {"cpu": pytest.approx(3e9)}
    assert measured_speed(Store(tmp_path / "none")) == {}


SUITE = """
protocol:
  {base: smoke, epochs: 10, evaluate_every: 4, node_embedding: 8, teacher: {epochs: 5}, head: {epochs: 3}}
dataset: {name: digits, train_per_class: 20, test_per_class: 10, size: 16}
trials: 1
teachers: {encoder: {network: resnet8, pretraining: simclr}}
grid:
  - {teacher: resnet8x4, student: resnet8, method: sskd, strategy: sequential}
  - {teacher: encoder, student: resnet8, method: kd, strategy: simultaneous}
"""
MEASURED = """
protocol: {base: smoke, teacher: {epochs: 1}}
dataset: {name: digits, train_per_class: 20, test_per_class: 10}
trials: 1
grid:
  - {teacher: resnet8x4, student: resnet8, method: kd, measure: {probe: digits, similarity: digits, probe_protocol: HOW}}
"""
R8, R8X4 = network("resnet8").macs, network("resnet8x4").macs


@pytest.fixture
def suite(tmp_path):
    """suite(text): a suite of this text."""

    def load(text):
        (tmp_path / "suite.yaml").write_text(text)
        return load_suite(tmp_path / "suite.yaml")

    return load


def test_every_stage_of_a_teacher_by_hand(suite):
    """200 images train and 100 test, at a quarter of the pixels for which the catalogue states a network's cost."""
    sskd, kd = (run.spec for run in suite(SUITE).runs)
    costs = [teacher_cost(stage) for stage in (*sskd.stages, *kd.stages)]
    assert costs == [
        (3 * 5 * 200 + 5 * 100) * R8X4 / 4,  # supervised, tested after each epoch
        (3 * 200 + 100) * R8X4 / 4,  # new layers: three epochs of one pass of the backbone, tested once
        10 * 200 * (1 + 3) * R8X4 / 4,  # the adapter learns on images and three transformed views, and is not tested
        (2 * 3 * 10 * 200 + 10 * (200 + 100)) * R8 / 4,  # SimCLR: two views; tests embed the training images, too
    ]
    assert student_cost(sskd) == (3 * 10 * 200 * (1 + 3) + 3 * 100) * R8 / 4


@pytest.mark.parametrize(
    ("how", "passes"),
    [("{base: linear, epochs: 7}", 1), ("{base: linear, epochs: 7, batch_norm: batch, flip: true}", 7)],
)
def test_a_measurement_costs_its_forward_passes(suite, how, passes):
    spec = {(m.of, m.spec.kind): m.spec for m in suite(MEASURED.replace("HOW", how)).measurements}
    train, test = 1000, 797
    assert measurement_cost(spec["student", "probe"]) == passes * (train + test) * R8
    assert measurement_cost(spec["teacher", "probe"]) == passes * (train + test) * R8X4
    assert measurement_cost(spec["student", "similarity"]) == test * (R8 + R8X4)


def test_weights_that_are_used_as_they_are_cost_nothing():
    weights = Weights(source="file", sha256="0" * 64)
    assert teacher_cost(Imported(network="resnet8", weights=weights, dataset=CIFAR)) == 0
