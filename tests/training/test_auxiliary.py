"""A teacher that is an earlier run's student: its weights are that run's, and they are checked."""

import pytest
import torch

from kdbench.errors import LostTeacher
from kdbench.suite.specs import NewLayers, StudentOf
from kdbench.training import jobs
from kdbench.training.build import load_teacher


@pytest.fixture
def make_pair(make_run):
    """make_pair(strategy, **fields): a run, and the one whose student teaches it."""

    def make(strategy="pretrained", **fields):
        between = make_run({"ce": 1, "pkt": 30}, strategy, student="wrn-16-1", **fields)
        teacher = StudentOf(run=between)
        run = make_run({"ce": 1, "kd": 1, "hkd": 1}, student="wrn-10-1", recipe=fields.get("recipe"))
        return run.model_copy(update={"teacher": teacher, "recipe": between.recipe}), between

    return make


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_its_weights_are_the_runs(bench, make_pair, strategy):
    run, between = make_pair(strategy, recipe={"epochs": 1})
    shop = bench()
    shop.teachers(between)
    jobs.train_cohort([between], shop.shop)
    network = load_teacher(run.teacher, shop.store, torch.device("cpu"))
    stored = jobs.load_teacher(run.teacher, shop.store, torch.device("cpu")).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in network.state_dict().items())
    jobs.train_cohort([run], shop.shop)
    result = shop.store.run(run.id).result()
    assert result.kind == "run"
    assert network(torch.zeros(1, 3, 32, 32)).embedding.shape[1] == (64 if strategy == "pretrained" else 16)
    assert not shop.store.teacher(run.teacher.id).folder.exists()


def test_new_layers_are_trained_on_it(bench, make_pair):
    run, between = make_pair("simultaneous", recipe={"epochs": 1})
    layers = NewLayers(parent=run.teacher, dataset=run.dataset, head=between.head)
    shop = bench()
    shop.teachers(between)
    jobs.train_cohort([between], shop.shop)
    for teaching in (
        run.model_copy(update={"teacher": layers}),
        run.model_copy(update={"head": between.head}),
    ):
        for stage in teaching.stages:
            jobs.train_teacher(stage, shop.shop)
        jobs.train_cohort([teaching], shop.shop)
        assert shop.store.run(teaching.id).result()


def test_it_keeps_the_best_epoch_if_asked(bench, make_run):
    last = make_run({"ce": 1}, recipe={"lr": 0.5, "epochs": 6, "milestones": ()})
    best = last.model_copy(update={"checkpoint": "best"})
    shop = bench()
    shop.train(last, best)
    one, other = (shop.store.run(run.id).result() for run in (last, best))
    assert (one.last, one.best) == (other.last, other.best)
    assert one.best.epoch < one.last.epoch, "the last epoch is the best: this shows nothing"
    assert one.weights_sha256 != other.weights_sha256
    up_to_the_best = make_run({"ce": 1}, recipe={"lr": 0.5, "epochs": one.best.epoch, "milestones": ()})
    shop.train(up_to_the_best)
    assert shop.store.run(up_to_the_best.id).result().weights_sha256 == other.weights_sha256


def test_a_damaged_one_is_set_aside(bench, make_pair):
    run, between = make_pair(recipe={"epochs": 1})
    shop = bench()
    shop.train(between)
    record = shop.store.run(between.id)
    before = record.weights_file.read_bytes()
    record.weights_file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(LostTeacher, match=r"the teacher is quarantined \(.*\.damaged-1\) and redone"):
        jobs.train_cohort([run], shop.shop)
    assert not record.done()
    shop.train(between)
    jobs.train_cohort([run], shop.shop)
    assert record.weights_file.read_bytes() == before
    assert shop.store.run(run.id).done()


def test_a_damaged_one_is_found_before_the_work_begins(bench, make_run):
    run = make_run({"ce": 1}, recipe={"epochs": 1})
    student = StudentOf(run=run)
    shop = bench()
    shop.train(run)
    assert shop.store.quarantine_damaged_teachers([student]) == []
    shop.store.run(run.id).weights_file.write_bytes(b"")
    (message,) = shop.store.quarantine_damaged_teachers([student])
    assert "is not the file that was stored" in message
    assert not shop.store.run(run.id).folder.exists()
