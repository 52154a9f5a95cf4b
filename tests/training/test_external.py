"""Networks from elsewhere as teacher and student: together = alone, stopped = uninterrupted, and loaded from what is kept."""

import shutil
import sys

import pytest
import torch

from kdbench.catalogue.plugins import locating_modules
from kdbench.suite.networks import network_spec
from kdbench.suite.specs import StudentOf
from kdbench.training.build import load, load_teacher


CODE = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images):
        return self.head(self.drop(self.layer2(self.layer1(self.stem(images))).mean((2, 3))))
"""


@pytest.fixture
def net(tmp_path):
    """net(**arguments): the network of a module in a folder of its own."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "planned_nets.py").write_text(CODE)
    finders = list(sys.meta_path)
    with locating_modules({"planned_nets": folder}.get):
        yield lambda **arguments: network_spec("", "planned_nets:Net", arguments=arguments)
    sys.meta_path[:] = finders
    sys.modules.pop("planned_nets", None)


@pytest.fixture
def runs(make_run, teacher, net):
    """Runs of an own student under an own teacher, and of a catalogue's student under it."""
    own = teacher.model_copy(update={"network": net(width=6)})
    sums = [
        {"ce": 1},
        {"kd": 1},
        {"fitnet": {"weight": 1, "layer": 1}},
        {"at": 1},
        {"rkd": 1},
        {"crd": 1},
        {"semckd": 1},
    ]
    made = [make_run({"ce": 1, **terms}).model_copy(update={"student": net(), "teacher": own}) for terms in sums]
    made[0] = made[0].model_copy(update={"teacher": None})
    return [*made, made[3].model_copy(update={"student": "resnet8"})]


@pytest.mark.slow
def test_together_and_alone_stopped_and_not(bench, runs):
    together, alone, hurt = bench("together"), bench("alone"), bench("hurt", checkpoint_seconds=0)
    together.train(*runs)
    for run in runs:
        alone.train(run)
    assert together.files(*runs) == alone.files(*runs)
    hurt.teachers(*runs)
    assert hurt.again(stop_at_call=6).cohort(*runs).stopped
    hurt.again().cohort(*runs)
    assert hurt.files(*runs) == together.files(*runs)


@pytest.mark.parametrize("strategy", ["sequential", "simultaneous"])
def test_new_layers(bench, make_run, teacher, net, strategy):
    run = make_run({"ce": 1, "ega": 1}, strategy)
    own = teacher.model_copy(update={"network": net()})
    changes = {"student": net(), "teacher": own}
    if strategy == "sequential":
        changes["teacher"] = run.teacher.model_copy(update={"parent": own})
    run = run.model_copy(update=changes)
    here, hurt = bench("here"), bench("hurt", checkpoint_seconds=0)
    here.train(run)
    hurt.teachers(run)
    assert hurt.again(stop_at_call=6).cohort(run).stopped
    hurt.again().cohort(run)
    assert here.files(run) == hurt.files(run)


def test_a_student_whose_code_is_gone(bench, runs, tmp_path):
    """Its archived source builds it again."""
    here, run = bench(), runs[1]
    here.train(run)
    images = torch.rand(2, 3, 16, 16)
    before = load_teacher(StudentOf(run=run), here.store, torch.device("cpu")).eval()(images).logits
    shutil.rmtree(tmp_path / "code")
    sys.meta_path[:] = [each for each in sys.meta_path if not getattr(each, "of_plugins", False)]
    del sys.modules["planned_nets"]
    student = load(run.id, here.store, tmp_path)
    assert torch.equal(student.network(images).logits, before)
    assert len(student.class_names) == 10


def test_code_that_has_changed(bench, runs, tmp_path):
    here, run = bench(), runs[0]
    (tmp_path / "code" / "planned_nets.py").write_text(CODE.replace("0.1", "0.2"))
    here.train(run)
    assert (
        "code of planned_nets:Net is not what it was when the run was planned"
        in here.store.run(run.id).failure().reason
    )
