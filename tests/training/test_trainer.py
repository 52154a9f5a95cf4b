"""What a recipe says reaches SGD, and what an epoch gives is written down."""

import sys

import pytest
import torch
from torch import nn

from kdbench.data.batch import Batch, seed_default_generators
from kdbench.evaluation import Scores
from kdbench.methods import TermContext, build_term
from kdbench.models import build
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.suite.specs import Recipe
from kdbench.training.trainer import Trainer, make_optimiser, set_learning_rate


@pytest.fixture
def trainer(tmp_path, recipe):
    """trainer(keep_best=False, **changes): a resnet8 that learns from cross-entropy."""

    def make(keep_best=False, weight=1.0, **changes):
        torch.manual_seed(0)
        network = build("resnet8", 10)
        shapes = measure_shapes(network, 32)
        terms = {"ce": build_term("ce", TermContext(shapes, shapes, 10, 40, 16))}
        settings = recipe.model_copy(update=changes)
        return Trainer(Store(tmp_path).run("x"), network, terms, {"ce": weight}, settings, seed="", keep_best=keep_best)

    return make


def batch(seed=0, size=16):
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(size, 3, 32, 32, generator=draw), torch.randint(0, 10, (size,), generator=draw), torch.arange(size)
    )


def test_the_rate_falls_after_each_milestone(trainer, bench, make_run):
    recipe = Recipe(epochs=6, batch=16, lr=0.5, milestones=(2, 4), decay=0.1)
    assert [recipe.lr_at(epoch) for epoch in range(1, 7)] == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
    one = trainer(lr=0.5, milestones=(2, 4))
    for epoch in (1, 3, 5):
        one.begin_epoch(epoch)
        assert one.optimiser.param_groups[0]["lr"] == recipe.lr_at(epoch)
    shop, run = bench(), make_run({"ce": 1}, recipe={"lr": 0.02, "milestones": (1, 2), "decay": 0.5})
    shop.train(run)
    assert [row["lr"] for row in shop.store.run(run.id).metrics()] == pytest.approx([0.02, 0.01, 0.005])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_the_textbook_one(momentum, nesterov):
    recipe = Recipe(epochs=1, batch=2, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01)
    weight = nn.Parameter(torch.randn(50, dtype=torch.float32))
    expected, velocity = weight.detach().double().clone(), None
    optimiser = make_optimiser([weight], recipe)
    for step in range(5):
        rate = 0.1 if step < 3 else 0.01
        set_learning_rate(optimiser, rate)
        weight.grad = torch.randn(50)
        gradient = weight.grad.double() + 0.01 * expected
        velocity = gradient if velocity is None else momentum * velocity + gradient
        expected = expected - rate * (gradient + momentum * velocity if nesterov else velocity)
        optimiser.step()
    assert torch.allclose(weight.double(), expected, atol=1e-6)


def test_the_parameters_of_terms_train_with_the_network(bench, make_run):
    from kdbench.training.build import student_trainer

    run, shop = make_run({"ce": 1, "vid": 1}), bench()
    torch.manual_seed(0)
    trainer = student_trainer(run, shop.store, build("resnet8x4", 10), torch.arange(40) % 10, torch.device("cpu"))
    inside = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.terms.parameters()} < inside
    assert len(list(trainer.terms.parameters())) > 0
    before = [p.clone() for p in trainer.terms.parameters()]
    teacher = build("resnet8x4", 10).eval().requires_grad_(False)
    trainer.begin_epoch(1)
    trainer.step(batch(), teacher(batch().images))
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.terms.parameters(), strict=True)]
    assert all(changed)
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_loss_and_error_written_down_are_means_over_images(trainer):
    one = trainer(weight=2.0, lr=1e-12)
    one.begin_epoch(1)
    batches = [batch(0, 16), batch(1, 4)]
    losses, wrong = [], 0
    for each in batches:
        logits = one.network(each.images).logits
        losses.append(nn.functional.cross_entropy(logits, each.labels).item())
        wrong += sum(answer != label for answer, label in zip(logits.argmax(1), each.labels, strict=True))
        one.step(each, None)
    one.end_epoch(1, Scores(12.5, 50.0))
    (row,) = one.progress.metrics
    assert 0 < wrong < 20
    assert row["train_error"] == pytest.approx(100 * wrong.item() / 20)
    mean = (16 * losses[0] + 4 * losses[1]) / 20
    assert row["terms"] == {"ce": pytest.approx(mean, rel=1e-4)}
    assert row["loss"] == pytest.approx(2 * mean, rel=1e-4)
    assert (row["epoch"], row["top1"], row["top5"]) == (1, 12.5, 50.0)
    assert (one.progress.epoch, one.progress.batches, one.progress.images) == (1, 0, 0)


def test_best_is_the_first_of_the_best_and_last_the_last_that_was_tested(trainer):
    one = trainer(keep_best=True, epochs=4)
    kept = []
    for epoch, top1 in enumerate([10.0, 30.0, 30.0, 20.0], start=1):
        one.begin_epoch(epoch)
        one.step(batch(epoch), None)
        one.end_epoch(epoch, Scores(top1, 90.0))
        kept.append(one.best_weights["conv1.weight"])
    assert (one.best().epoch, one.best().top1) == (2, 30.0)
    assert (one.last().epoch, one.last().top1) == (4, 20.0)
    assert kept[1] is kept[2] is kept[3]
    assert not torch.equal(kept[3], one.network.conv1.weight)
    assert not one.active
    assert not one.active


def test_only_every_so_many_epochs_are_tested_and_the_last_one_always(trainer, bench, make_run):
    assert [e for e in range(1, 8) if trainer(epochs=7, evaluate_every=3).due_for_test(e)] == [3, 6, 7]
    shop, run = bench(), make_run({"ce": 1}, recipe={"epochs": 3, "evaluate_every": 2})
    shop.train(run)
    assert [row.get("top1") is not None for row in shop.store.run(run.id).metrics()] == [False, True, True]
    assert shop.store.run(run.id).result().last.epoch == 3


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_bf16_trains_to_finite_numbers_and_stores_float32(bench, make_run, strategy):
    from safetensors.torch import load_file

    runs = [
        make_run({"ce": 1, **t}, strategy, {"precision": "bf16", "epochs": 2})
        for t in ({"kd": 1}, {"at": 100, "sp": 300})
    ]
    shop = bench()
    shop.train(*runs)
    for run in runs:
        assert shop.store.run(run.id).result()
        tensors = load_file(shop.store.run(run.id).weights_file)
        assert all(t.dtype in (torch.float32, torch.int64) and t.isfinite().all() for t in tensors.values())


def test_what_is_random_in_a_step_belongs_to_the_run_the_epoch_and_the_step(trainer):
    one = trainer()
    drawn = []
    for epoch in (1, 2):
        one.progress.epoch = epoch - 1
        one.begin_epoch(epoch)
        for each in (batch(0), batch(1)):
            one.step(each, None)
            drawn.append(torch.rand(()).item())
    again = trainer()
    torch.manual_seed(5)
    again.begin_epoch(1)
    again.step(batch(0), None)
    assert torch.rand(()).item() == drawn[0]
    assert len(set(drawn)) == 4


def test_sums_keep_their_memory_and_no_gradient_is_left_from_before(trainer):
    one = trainer()
    weight = one.network.conv1.weight
    weight.grad = torch.ones_like(weight)
    one.begin_epoch(1)
    assert weight.grad is None
    one.step(batch(0), None)
    first, value = one.sums["ce"], one.sums["ce"].item()
    one.step(batch(1), None)
    assert one.sums["ce"] is first
    assert first.item() > value > 0


def test_the_default_generators_of_the_cpu_and_one_device_are_seeded(monkeypatch):
    devices = torch.Generator(), torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", devices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.rand(3)
        seed_default_generators(7, torch.device("cpu"))
        assert torch.equal(torch.rand(3), expected)
        seed_default_generators(8, torch.device("cuda", 1))
        assert torch.initial_seed() == 8
    assert devices[1].initial_seed() == 8
    assert devices[0].initial_seed() != 8


def test_training_imports_no_compiler(bench, make_run, monkeypatch):
    run, shop = make_run({"ce": 1, "kd": 1}, recipe={"epochs": 1}), bench()
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    shop.train(run)
    assert shop.record(run).done()
