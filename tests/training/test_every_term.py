"""Every loss term in a run of the smoke protocol, with real networks. A new one is tested without a line of its own."""

from __future__ import annotations

import shutil

import pytest
import torch

from kdbench.catalogue.terms import term, term_names
from kdbench.data.stream import DataSource
from kdbench.suite.load import load_suite
from kdbench.suite.protocol import bundled_protocol
from kdbench.training import jobs


SUITE = """
protocol: smoke
dataset: {{name: digits, train_per_class: 6, test_per_class: 1}}
grid: [{{teacher: resnet8, student: {student}, method: {method}}}]
"""


def method_of(name):
    """The smoke protocol's first method with a term."""
    found = [method for method, uses in bundled_protocol("smoke").terms.items() if name in {use.name for use in uses}]
    assert found, f"the smoke protocol has no method with '{name}'"
    return found[0]


@pytest.fixture(params=term_names())
def name(request):
    return request.param


@pytest.fixture
def spec(name, tmp_path):
    file = tmp_path / "suite.yaml"
    student = "wrn-16-1" if term(name).auxiliary else "wrn-10-1"  # of which a doubled one is known; and a cheaper one
    file.write_text(SUITE.format(student=student, method=method_of(name)))
    (run,) = load_suite(file).runs
    return run.spec


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A results folder for all tests of this module, and its images: what comes before the runs is made once."""
    root = tmp_path_factory.mktemp("every-term")
    return root, DataSource(root, torch.device("cpu"))


@pytest.fixture
def visit(bench, place):
    """visit(stop_after=None): the folder as a new worker finds it."""

    def make(**options):
        root, data = place
        shop = bench(root, **options)
        shop.data = data
        return shop

    return make


@pytest.fixture
def teachers(monkeypatch):
    """Pairs of each teacher that has been loaded and its tensors at that time."""
    found, make = [], jobs.open_teacher

    def spy(*args):
        teacher = make(*args)
        if teacher:
            found.append((teacher.network, {key: value.clone() for key, value in teacher.network.state_dict().items()}))
        return teacher

    monkeypatch.setattr(jobs, "open_teacher", spy)
    return found


def prepare(shop, spec):
    """Train what comes before a run: its teacher, and where that is a student, this one."""
    if spec.teacher and spec.teacher.source_run:
        shop.train(spec.teacher.source_run)
    shop.teachers(spec)


def test_it_lowers_the_loss_leaves_the_teacher_alone_and_can_be_resumed(name, spec, visit, teachers):
    """Stopped in its first epoch and after it, it ends byte for byte where it ends without a stop: all its state is saved."""
    shop = visit()
    prepare(shop, spec)
    assert jobs.train_cohort([spec], visit(stop_at_call=2).shop).stopped
    assert jobs.train_cohort([spec], visit(stop_after=1).shop).stopped
    assert jobs.train_cohort([spec], visit(stop_at_call=3).shop).stopped
    jobs.train_cohort([spec], visit().shop)
    resumed = shop.files(spec)
    shutil.rmtree(shop.store.run(spec.id).folder)
    teachers.clear()
    jobs.train_cohort([spec], shop.shop)
    assert shop.files(spec) == resumed

    rows = shop.store.run(spec.id).metrics()
    losses = [row["loss"] for row in rows if row["epoch"] > 0]
    assert losses[-1] < losses[0]
    initial = [row["loss"] for row in rows if row["epoch"] < 1]
    assert initial == sorted(initial, reverse=True)
    assert name in rows[0]["terms"]

    assert bool(teachers) == bool(spec.teacher)
    for network, before in teachers:
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
