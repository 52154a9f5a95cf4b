"""Terms that train the student before the main training: what learns then, and when it ends."""

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.models import build
from kdbench.planning.cost import student_work, teacher_pass_work
from kdbench.training.build import student_trainer


AB = {"weight": 1, "initial_epochs": 2}
FSP = {"weight": 50, "initial_epochs": 1}


@pytest.fixture
def trainer(bench, make_run):
    """trainer(student, teacher): one that begins with two epochs of AB."""

    def make(student="resnet8", teacher="resnet8"):
        run = make_run({"ce": 1, "kd": 1, "ab": AB}, student=student, recipe={"milestones": (1,)})
        guide = build(teacher, 10).eval().requires_grad_(False)
        labels = torch.arange(40) % 10
        return student_trainer(run, bench().store, guide, labels, torch.device("cpu")), guide

    return make


def one_epoch(trainer, guide, epoch):
    draw = torch.Generator().manual_seed(epoch + 10)
    batch = Batch(torch.randn(4, 3, 16, 16, generator=draw), torch.arange(4), torch.arange(4))
    trainer.begin_epoch(epoch)
    trainer.step(batch, guide(batch.images))
    trainer.end_epoch(epoch, None)


def changed(trainer, before):
    """Names of the network's tensors, the counters left out, that are no longer as before."""
    now = trainer.network.state_dict()
    return {key for key in now if "num_batches" not in key and not torch.equal(now[key], before[key])}


LEFT_ALONE = {
    ("resnet8", "resnet14"): ("fc.",),
    ("wrn-10-1", "resnet8"): ("bn1.", "fc."),
    ("vgg8", "vgg8"): ("classifier.",),
    ("mobilenetv2", "vgg8"): ("conv2.", "classifier."),
    ("shufflenetv2", "resnet8"): ("conv2.", "bn2.", "linear."),
}


@pytest.mark.parametrize("pair", LEFT_ALONE)
def test_only_what_makes_the_maps_learns_at_first(trainer, pair):
    student, teacher = pair
    if pair == ("shufflenetv2", "resnet8"):
        student, teacher = "shufflenetv2", "shufflenetv1"
    one, guide = trainer(student, teacher)
    before = {key: value.clone() for key, value in one.network.state_dict().items()}
    parts = [p.clone() for p in one.terms.parameters()]
    one_epoch(one, guide, -1)
    rest = {key for key in before if key.startswith(LEFT_ALONE[pair]) and "num_batches" not in key}
    everything = {key for key in before if "num_batches" not in key}
    assert rest
    assert changed(one, before) == everything - rest
    assert all(not torch.equal(p, q) for p, q in zip(parts, one.terms.parameters(), strict=True))
    one_epoch(one, guide, 0)
    at_the_border = [p.clone() for p in one.terms.parameters()]
    one_epoch(one, guide, 1)
    assert changed(one, before) == everything
    assert all(torch.equal(p, q) for p, q in zip(at_the_border, one.terms.parameters(), strict=True))


def test_the_main_training_begins_with_a_fresh_optimiser_at_the_first_rate(trainer):
    one, guide = trainer()
    for epoch in (-1, 0):
        one_epoch(one, guide, epoch)
        assert one.optimiser.param_groups[0]["lr"] == one.recipe.lr
        assert bool(one.optimiser.state) == (epoch < 0)
        assert one.progress.metrics[-1]["terms"].keys() == {"ab"}
        assert one.progress.metrics[-1]["loss"] == one.progress.metrics[-1]["terms"]["ab"] > 0
    inside = {id(p) for group in one.optimiser.param_groups for p in group["params"]}
    assert inside == {id(p) for module in (one.network, one.terms) for p in module.parameters()}
    one_epoch(one, guide, 1)
    row = one.progress.metrics[-1]
    assert row["terms"]["ab"] == 0
    assert row["loss"] == pytest.approx(row["terms"]["ce"] + row["terms"]["kd"])
    assert [row["lr"] for row in one.progress.metrics] == [one.recipe.lr] * 3


def test_the_initial_loss_falls(bench, make_run):
    run = make_run({"ce": 1, "ab": {"weight": 1, "initial_epochs": 4}}, recipe={"epochs": 1})
    shop = bench()
    shop.train(run)
    rows = shop.store.run(run.id).metrics()
    assert [row["epoch"] for row in rows] == [-3, -2, -1, 0, 1]
    assert ["top1" in row for row in rows] == [False] * 4 + [True]
    assert rows[3]["terms"]["ab"] < 0.9 * rows[0]["terms"]["ab"]
    result = shop.store.run(run.id).result()
    assert (result.last.epoch, result.best.epoch) == (1, 1)
    assert shop.store.run(run.id).metadata()["macs"] == student_work(run).macs + teacher_pass_work(run).macs


def test_a_resumed_run_says_in_which_epoch_of_its_initial_stage_it_is(bench, make_run):
    run, shop = make_run({"ce": 1, "ab": AB}, recipe={"epochs": 2}), bench()
    shop.teachers(run)
    assert shop.again(stop_after=1).cohort(run).stopped
    last = shop.again()
    last.cohort(run)
    assert last.texts("resumed") == ["resumes after epoch -1"]
    assert last.events[0]["initial_epochs"] == 2
    assert last.count("epoch") == 3


def test_a_loss_that_is_not_finite_ends_the_run(trainer):
    one, guide = trainer()
    next(one.network.parameters()).data.fill_(float("nan"))
    one_epoch(one, guide, -1)
    assert one.failure.kind == "diverged"
    assert one.failure.reason == "the loss is not finite in epoch -1"
