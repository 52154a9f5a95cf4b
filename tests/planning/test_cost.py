"""What training costs: by hand for one case, and what is measured."""

import pytest

from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import costs
from kdbench.planning.cost import (
    cohort_work,
    image_counts,
    measurement_work,
    student_work,
    teacher_pass_work,
    teacher_work,
)
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
    assert student_work(RUN).macs == student
    assert teacher_pass_work(RUN).macs == 10 * 50_000 * VGG13
    assert cohort_work([RUN, RUN, RUN]).macs == 3 * student + 10 * 50_000 * VGG13
    assert teacher_work(TEACHER).macs == (3 * 10 * 50_000 + 3 * 10_000) * VGG13


def test_what_else_is_counted():
    """A layer is run once for each batch of a pass, tests have batches of 250, and weights are updated after each batch."""
    work, batches = student_work(RUN), 10 * 50_000 / 64
    vgg8 = network("vgg8")
    assert work.activations == (3 * 10 * 50_000 + 3 * 10_000) * vgg8.activations
    assert work.layers == 3 * batches * vgg8.layers + 3 * 40 * vgg8.layers
    assert work.updates == batches * vgg8.parameters
    assert (work.files, teacher_pass_work(RUN).updates) == (0, 0)


def test_images_that_stay_files_are_decoded_once_for_a_cohort():
    imagenet = DatasetSpec(name="imagenet")
    run = RUN.model_copy(update={"dataset": imagenet})
    train, test = image_counts(imagenet)
    assert cohort_work([run, run]).files == 10 * train + 2 * 3 * test
    small = imagenet.model_copy(update={"train_per_class": 1, "test_per_class": 1, "classes": 8, "stand_in": True})
    assert cohort_work([run.model_copy(update={"dataset": small})]).files == 0


def test_what_a_term_computes_itself_counts_too():
    plain, heavy = (RUN.model_copy(update={"terms": (WeightedTerm(name=name),)}) for name in ("kd", "semckd"))
    ratio = cohort_work([heavy]).macs / cohort_work([plain]).macs
    assert ratio == pytest.approx(costs().of("semckd").time, rel=0.02)


def test_a_head_costs_one_pass_of_the_backbone():
    head = HeadSpec(width=256, recipe=RECIPE.model_copy(update={"epochs": 2}))
    assert teacher_work(NewLayers(parent=TEACHER, dataset=CIFAR, head=head)).macs == (2 * 50_000 + 10_000) * VGG13


def test_few_shots_cost_less_but_for_the_tests():
    few = RUN.model_copy(update={"scenario": Scenario(fraction=0.1)})
    assert student_work(few).macs == (3 * 10 * 5_000 + 3 * 10_000) * VGG8
    assert teacher_pass_work(few).macs == 10 * 5_000 * VGG13


def test_an_initial_stage_costs_its_epochs_and_no_tests():
    ab = RUN.model_copy(update={"terms": (WeightedTerm(name="ab"), WeightedTerm(name="ce"))})
    assert student_work(ab).macs == (3 * (10 + 30) * 50_000 + 3 * 10_000) * VGG8
    assert teacher_pass_work(ab).macs == (10 + 30) * 50_000 * VGG13
    short = ab.model_copy(update={"terms": (WeightedTerm(name="fsp", hyperparameters={"initial_epochs": 2}),)})
    assert teacher_pass_work(short).macs == (10 + 2) * 50_000 * VGG13


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
    assert teacher_pass_work(RUN.model_copy(update={"teacher": None})).macs == 0
    assert cohort_work([]).macs == 0


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
    stages = [teacher_work(stage).macs for stage in (*sskd.stages, *kd.stages)]
    assert stages == [
        (3 * 5 * 200 + 5 * 100) * R8X4 / 4,  # supervised, tested after each epoch
        (3 * 200 + 100) * R8X4 / 4,  # new layers: three epochs of one pass of the backbone, tested once
        10 * 200 * (1 + 3) * R8X4 / 4,  # the adapter learns on images and three transformed views, and is not tested
        (2 * 3 * 10 * 200 + 10 * (200 + 100)) * R8 / 4,  # SimCLR: two views; tests embed the training images, too
    ]
    passes = 3 * 10 * 200 * (1 + 3) * R8 / 4
    own = (costs().of("sskd").time / 4 - 1) * (passes + teacher_pass_work(sskd).macs)
    assert student_work(sskd).macs == pytest.approx(passes + own + 3 * 100 * R8 / 4)


@pytest.mark.parametrize(
    ("how", "passes"),
    [("{base: linear, epochs: 7}", 1), ("{base: linear, epochs: 7, batch_norm: batch, flip: true}", 7)],
)
def test_a_measurement_costs_its_forward_passes(suite, how, passes):
    spec = {(m.of, m.spec.kind): m.spec for m in suite(MEASURED.replace("HOW", how)).measurements}
    train, test = 1000, 797
    assert measurement_work(spec["student", "probe"]).macs == passes * (train + test) * R8
    assert measurement_work(spec["teacher", "probe"]).macs == passes * (train + test) * R8X4
    assert measurement_work(spec["student", "similarity"]).macs == test * (R8 + R8X4)


def test_weights_that_are_used_as_they_are_cost_nothing():
    weights = Weights(source="file", sha256="0" * 64)
    assert teacher_work(Imported(network="resnet8", weights=weights, dataset=CIFAR)).macs == 0
