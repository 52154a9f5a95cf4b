"""Runs that look at transformed copies: what their terms see, and that nobody beside them is disturbed."""

import pytest
import torch

from kdbench.data.views import interleave_views
from kdbench.planning.cost import student_work, teacher_pass_work
from kdbench.training import jobs
from kdbench.training.build import load_teacher, student_trainer


CPU = torch.device("cpu")
SEEING = {"ce": 1, "kd": 1, "part_terms:Seeing": 0.1}


@pytest.fixture
def seeing(make_run):
    """A run with a term that looks at copies of a kind."""

    def make(strategy="pretrained", kind="rotations", **fields):
        uses = make_run({"ce": 1, "kd": 1, "part_terms:Seeing": {"weight": 0.1, "kind": kind}}).terms
        run = make_run({"ce": 1, "kd": 1}, strategy, **fields)
        return run.model_copy(update={"terms": uses})

    return make


@pytest.fixture
def ready(bench, seeing):
    """The trainer of such a run, its guide, and a batch."""
    run, shop = seeing(), bench()
    shop.teachers(run)
    guide = jobs.open_teacher(run, shop.shop)
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    trainer = student_trainer(run, shop.store, guide.network, stream.labels, CPU)
    trainer.begin_epoch(1)
    return trainer, guide, next(stream.epoch(1, transforms=["rotations"]))


def seen_by(trainer, monkeypatch):
    """What each term is given in the steps to come, by name."""
    given = {}
    for name, term in trainer.terms.items():
        forward = term.forward

        def spy(student, teacher, batch, name=name, forward=forward):
            given[name] = student, teacher
            return forward(student, teacher, batch)

        monkeypatch.setattr(term, "forward", spy)
    return given


def test_one_pass_of_all_views_and_the_other_terms_see_the_upright_ones(ready, monkeypatch):
    trainer, guide, batch = ready
    passes = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: passes.append(inputs[0].detach().clone()))
    given = seen_by(trainer, monkeypatch)
    trainer.step(batch, guide.forward(batch), guide.forward_views(batch)["rotations"])
    (images,) = passes
    assert torch.equal(images, interleave_views(batch.images, batch.views["rotations"].images))
    assert torch.equal(images[::4], batch.images)
    everything = given["part_terms:Seeing"][0]
    for name in ("ce", "kd"):
        upright = given[name][0]
        assert torch.equal(upright.logits, everything.logits[::4])
        assert torch.equal(upright.embedding, everything.embedding[::4])
        for one, all_ in zip(upright.features, everything.features, strict=True):
            assert torch.equal(one, all_[::4])
    assert trainer.progress.images == len(batch)


def test_the_teachers_rows_are_those_of_the_same_views(ready, monkeypatch):
    trainer, guide, batch = ready
    given = seen_by(trainer, monkeypatch)
    shown = guide.forward(batch)
    trainer.step(batch, shown, guide.forward_views(batch)["rotations"])
    expected = guide.network(interleave_views(batch.images, batch.views["rotations"].images))
    teacher = given["part_terms:Seeing"][1]
    assert torch.allclose(teacher.logits, expected.logits, atol=1e-4)
    assert torch.allclose(teacher.features[-1], expected.features[-1], atol=1e-4)
    assert torch.allclose(teacher.preactivations[-1], expected.preactivations[-1], atol=1e-4)
    assert torch.equal(given["kd"][1].logits, shown.logits)
    assert not teacher.logits.requires_grad


def test_batch_norm_mixes_all_views(ready):
    trainer, guide, batch = ready
    norm = trainer.network.bn1
    before = norm.running_mean.clone()
    images = interleave_views(batch.images, batch.views["rotations"].images)
    with torch.no_grad():
        expected = 0.9 * before + 0.1 * trainer.network.conv1(images).mean((0, 2, 3))
    trainer.step(batch, guide.forward(batch), guide.forward_views(batch)["rotations"])
    assert torch.allclose(norm.running_mean, expected, atol=1e-5)
    assert norm.num_batches_tracked == 1


def test_the_teacher_runs_once_on_the_copies_for_all_who_look(bench, make_run, seeing, monkeypatch):
    runs = [seeing(trial=0), seeing(trial=0, recipe={"lr": 0.1}), make_run({"ce": 1, "kd": 1})]
    shop = bench()
    shop.teachers(*runs)
    sizes, load = [], jobs.load_teacher

    def counting(*arguments):
        network = load(*arguments)
        network.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
        return network

    monkeypatch.setattr(jobs, "load_teacher", counting)
    jobs.train_cohort(runs, shop.shop)
    steps = [size for size in sizes if size > 1]
    assert sorted(set(steps)) == [8, 16, 24, 48]
    assert len(steps) == 2 * 3 * 3, "of 40 images in three batches, for three epochs: images and copies"


def test_two_kinds_in_one_run_are_refused_and_the_run_fails_alone(bench, make_run):
    from part_terms import SeeingToo

    assert SeeingToo.views == 3
    uses = make_run({"part_terms:Seeing": 1, "part_terms:SeeingToo": {"kind": "four"}}).terms
    good = make_run({"ce": 1, "kd": 1})
    bad, shop = good.model_copy(update={"terms": uses}), bench()
    shop.train(good, bad)
    assert shop.store.run(good.id).done()
    reason = shop.store.run(bad.id).failure().reason
    assert reason == "the terms of a run must look at one kind of copies, not at four and rotations"


def test_they_cost_four_times_as_much(seeing, make_run):
    plain, looking = make_run({"ce": 1, "kd": 1}), seeing()
    assert teacher_pass_work(looking).macs == 4 * teacher_pass_work(plain).macs
    assert 3 < student_work(looking).macs / student_work(plain).macs < 4


def test_the_teacher_is_left_as_it_was(bench, seeing):
    run, shop = seeing(), bench()
    shop.teachers(run)
    before = load_teacher(run.teacher, shop.store, CPU).state_dict()
    guide = jobs.open_teacher(run, shop.shop)
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    guide.forward_views(next(stream.epoch(1, transforms=["jigsaw"])))
    assert all(torch.equal(value, before[key]) for key, value in guide.network.state_dict().items())
