"""Disk space by hand, and that of a bundled suite."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import costs
from kdbench.planning.cohorts import Cohort
from kdbench.planning.disk import Disk, disk_needed
from kdbench.planning.plan import Plan
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    Imported,
    NewLayers,
    Recipe,
    RunSpec,
    Supervised,
    WeightedTerm,
    Weights,
)


RECIPE = Recipe(epochs=10, batch=64, lr=0.1)
CIFAR = DatasetSpec(name="cifar100")
TEACHER = Supervised(network="vgg13", dataset=CIFAR, recipe=RECIPE)
VGG8, VGG13 = network("vgg8").parameters, network("vgg13").parameters


def run(method, **values):
    spec = {"student": "vgg8", "teacher": TEACHER, "dataset": CIFAR, "recipe": RECIPE, **values}
    return RunSpec(terms=(WeightedTerm(name=method),), **spec)


def test_by_hand():
    """Weights of three networks; on one slot the checkpoints of two students, with what vid trains, are the most."""
    plan = Plan((TEACHER,), (Cohort((run("kd"), run("vid"))),), 0, 0)
    disk = disk_needed(plan, 1)
    assert disk.weights == 4 * (2 * VGG8 + VGG13)
    assert disk.checkpoints == max(8 * (2 * VGG8 + costs().of("vid").parameters), 12 * VGG13)
    assert disk_needed(plan, 2).checkpoints == 8 * (2 * VGG8 + costs().of("vid").parameters) + 12 * VGG13
    assert disk.logs == 3 * 10 * 250 + 3 * 16_384


def test_weights_of_the_best_epoch_are_in_the_checkpoint_too():
    plan = Plan((), (Cohort((run("kd", checkpoint="best"),)),), 0, 0)
    assert disk_needed(plan, 4).checkpoints == 12 * VGG8


def test_of_new_layers_they_alone_are_stored():
    head = NewLayers(parent=TEACHER, dataset=CIFAR, head=HeadSpec(width=256, recipe=RECIPE))
    assert disk_needed(Plan((head,), (), 0, 0), 1).weights == 4 * (513 * 256 + 257 * 100)


def test_weights_that_are_used_as_they_are_have_no_checkpoint():
    weights = Weights(source="file", sha256="0" * 64)
    disk = disk_needed(Plan((Imported(network="vgg13", weights=weights, dataset=CIFAR),), (), 0, 0), 1)
    assert (disk.weights, disk.checkpoints) == (4 * VGG13, 0)


def test_weights_of_stand_ins_are_not_kept():
    tiny = CIFAR.model_copy(update={"classes": 8, "train_per_class": 1, "test_per_class": 1, "stand_in": True})
    plan = Plan((), (Cohort((run("kd", dataset=tiny),)),), 0, 0)
    assert disk_needed(plan, 1).weights == 0
    assert disk_needed(replace(plan, cohorts=()), 1).checkpoints == 0


def test_a_file_system_that_may_be_too_small_is_told_with_its_numbers(monkeypatch):
    disk = Disk(weights=3_000_000_000, checkpoints=1_500_000_000, logs=500_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5_000_000_000))
    assert disk.warning(Path("results")) == ""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=21_000_000))
    assert disk.warning(Path("results")).startswith(
        "results: 21.0 MB are free, and as much as 5.0 GB may be needed: 3.0 GB of weights, 500.0 MB of logs, up to 1.5 GB of"
    )
