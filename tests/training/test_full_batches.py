"""A run whose loss needs full batches leaves its epoch's short last one out; its neighbours do not."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.data.batch import Batch
from kdbench.evaluation import Scores
from kdbench.methods import Term, TermContext, build_term
from kdbench.models import build
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.training.trainer import Trainer


SEMCKD = {"ce": 1, "kd": 1, "semckd": 10}  # on 40 images in batches of 16, 16 and 8


class Picky(Term):
    """Nothing, from full batches."""

    reads = "nothing"
    needs_teacher = False
    full_batches = True

    def forward(self, student, teacher, batch):
        return student.logits.sum() * 0


@pytest.fixture
def trainer(tmp_path, recipe):
    """trainer(picky=True): a resnet8 that learns from cross-entropy, with or without a term that wants full batches."""

    def make(picky=True):
        torch.manual_seed(0)
        network = build("resnet8", 10)
        shapes = measure_shapes(network, 32)
        context = TermContext(shapes, shapes, 10, 40, 16)
        terms = {"ce": build_term("ce", context)} | ({"picky": Picky(context)} if picky else {})
        return Trainer(Store(tmp_path).run("x"), network, terms, dict.fromkeys(terms, 1.0), recipe, seed="")

    return make


def batch(size):
    draw = torch.Generator().manual_seed(size)
    images, labels = torch.randn(size, 3, 32, 32, generator=draw), torch.randint(0, 10, (size,), generator=draw)
    return Batch(images, labels, torch.arange(size))


@pytest.mark.parametrize("picky", [True, False])
def test_a_short_batch_changes_nothing_where_a_term_wants_full_ones(trainer, picky):
    one = trainer(picky)
    one.begin_epoch(1)
    one.step(batch(16), None)
    before = {key: value.clone() for key, value in one.network.state_dict().items()}
    one.step(batch(8), None)
    after = one.network.state_dict()
    same = {key: torch.equal(value, after[key]) for key, value in before.items()}
    assert all(same.values()) if picky else not any(same.values())


def test_the_epochs_loss_is_the_mean_over_the_batches_taken(trainer):
    one = trainer()
    one.begin_epoch(1)
    losses = []
    for size in (16, 16, 8):
        each = batch(size)
        losses.append(nn.functional.cross_entropy(one.network(each.images).logits, each.labels).item())
        one.step(each, None)
    one.end_epoch(1, Scores(12.5, 50.0))
    assert one.progress.metrics[0]["terms"]["ce"] == pytest.approx(sum(losses[:2]) / 2, rel=1e-4)


def steps(shop, run):
    """How many steps a run has taken, by its batch norms' count."""
    return load_file(shop.store.run(run.id).weights_file)["bn1.num_batches_tracked"].item()


def test_a_training_set_of_full_batches_is_used_whole(bench, make_run):
    run = make_run(SEMCKD, recipe={"batch": 20})
    shop = bench()
    shop.train(run)
    assert steps(shop, run) == 6


def test_a_training_set_smaller_than_a_batch_fails_with_a_reason_and_alone(bench, make_run):
    small, good = make_run(SEMCKD, recipe={"batch": 64}), make_run({"ce": 1, "kd": 1}, recipe={"batch": 64})
    shop = bench()
    shop.train(small, good)
    failure = shop.store.run(small.id).failure()
    assert failure.reason.startswith(
        "SemCKD learns from full batches only, and 40 training images do not fill one of 64"
    )
    assert shop.store.run(good.id).done()


def test_a_last_image_by_itself_is_left_out_where_batch_norm_needs_two(bench, make_run):
    """40 images in batches of 13; at 4 pixels resnet8's last maps are of one pixel, at 8 pixels of four."""
    small, large = (make_run({"ce": 1, "kd": 1}, recipe={"batch": 13, "size": size}) for size in (4, 8))
    for run, batches in ((small, 3), (large, 4)):
        shop = bench(f"at {run.recipe.size}")
        shop.train(run)
        weights = load_file(shop.store.run(run.id).weights_file)
        counted = [value.item() for key, value in weights.items() if key.endswith("num_batches_tracked")]
        assert set(counted) == {batches * run.recipe.epochs}


def test_batches_of_one_image_that_batch_norm_cannot_take_are_refused_by_name(bench, make_run):
    run, shop = make_run({"ce": 1}, recipe={"batch": 1, "size": 4}), bench()
    shop.train(run)
    assert "a batch of one image gives batch norm a single value" in shop.store.run(run.id).failure().reason
