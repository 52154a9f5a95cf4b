"""MGD: which channels belong together, when that is settled, and what follows from it."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods import TermContext, build_term
from kdbench.methods.mgd import assignment, channel_margins, costs, reduce_channels
from kdbench.models import build
from kdbench.models.heads import NodeEmbedding
from kdbench.models.outputs import measure_shapes


class Two:
    """A stream of two batches, which counts how often it is asked."""

    asked = 0

    def epoch(self, epoch, *, with_teacher=True):
        self.asked += 1
        draw = torch.Generator().manual_seed(epoch)
        for size in (4, 2):
            images = torch.randn(size, 3, 16, 16, generator=draw)
            yield Batch(images, torch.zeros(size, dtype=torch.long), torch.arange(size))


@pytest.fixture
def pair():
    """pair(student, teacher, …): a term and its networks."""

    def make(student="resnet8", teacher="resnet8x4", wrap=False, **options):
        torch.manual_seed(0)
        nets = [build(name, 10).eval() for name in (student, teacher)]
        for norm in nets[1].modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(norm.bias)
        nets = [NodeEmbedding(net, classes=10, width=8).eval() for net in nets] if wrap else nets
        context = TermContext(*(measure_shapes(net, 16) for net in nets), classes=10, train_size=6, batch_size=4)
        return build_term("mgd", context, **options).train(), *nets

    return make


@pytest.mark.parametrize("groups", [1, 2])
def test_the_assignment_is_the_cheapest(groups):
    draw = torch.Generator().manual_seed(groups)
    cost = torch.rand(2, 5, generator=draw)
    found = assignment(cost, groups)
    assert found.shape == (groups, 2)
    assert found.max() < 2 * groups  # the surplus channels are the last
    owners = [0, 1] * groups
    totals = [
        sum(cost[owner, column] for owner, column in zip(owners, order, strict=True))
        for order in itertools.permutations(range(2 * groups))
    ]
    assert sum(cost[owner, column] for owner, column in zip(owners, found.flatten(), strict=True)) == min(totals)


def test_costs_are_distances_between_unit_maps():
    ours, theirs = torch.randn(3, 2, 2, 2), torch.randn(3, 4, 2, 2)
    expected = torch.zeros(2, 4)
    for image, c, d in itertools.product(range(3), range(2), range(4)):
        a, b = ours[image, c], theirs[image, d]
        expected[c, d] += (a / a.norm() - b / b.norm()).square().sum()
    torch.testing.assert_close(costs(ours, theirs), expected)


def test_the_largest_value_and_the_largest_magnitude():
    teacher = torch.tensor([1.0, -3.0, 2.0, 0.5]).reshape(1, 4, 1, 1)
    chosen = torch.tensor([[0, 1], [2, 3]])
    assert reduce_channels(teacher, chosen, absolute=False).flatten().tolist() == [2.0, 0.5]
    assert reduce_channels(teacher, chosen, absolute=True).flatten().tolist() == [2.0, -3.0]


@pytest.mark.parametrize("interval", [1, 2])
def test_the_channels_are_chosen_before_every_so_many_epochs(pair, interval):
    term, student, teacher = pair(update_interval=interval)
    stream = Two()
    for epoch in range(1, 5):
        term.begin_epoch(epoch, student, teacher, stream)
    assert stream.asked == 4 // interval


@pytest.mark.parametrize("wrap", [False, True])
def test_what_is_chosen(pair, wrap):
    term, student, teacher = pair(wrap=wrap)
    term.begin_epoch(1, student, teacher, Two())
    images = torch.cat([batch.images for batch in Two().epoch(1)])
    for level in range(3):
        with torch.no_grad():
            ours, theirs = (net(images).preactivations[level] for net in (student, teacher))
        chosen = term.get_buffer(f"chosen{level}")
        assert sorted(chosen.flatten().tolist()) == list(range(theirs.shape[1]))
        assert torch.equal(chosen, assignment(costs(ours, theirs) / 6, 4))
        backbone = teacher.backbone if wrap else teacher
        last = getattr(backbone, f"layer{level + 1}")[-1].bn2
        assert torch.equal(term.get_buffer(f"margins{level}"), channel_margins(last))


def test_the_loss_by_hand(pair):
    term, student, teacher = pair()
    term.begin_epoch(1, student, teacher, Two())
    torch.nn.init.constant_(term.norms[1].weight, 2.0)
    batch = next(Two().epoch(5))
    ours, theirs = student(batch.images), teacher(batch.images)
    expected = 0.0
    for level in range(3):
        chosen = term.get_buffer(f"chosen{level}")
        margins = term.get_buffer(f"margins{level}")
        source = ours.preactivations[level] * (2 if level == 1 else 1) / (1 + 1e-5) ** 0.5
        target = torch.stack([theirs.preactivations[level][:, group] for group in chosen]).max(0).values
        target = target.maximum(margins[chosen].mean(0)[None, :, None, None])
        wrong = (source - target) ** 2 * ((source > target) | (target > 0))
        expected += wrong.sum() / 4 / 2 ** (2 - level)
    assert term(ours, theirs, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_batch_norms_normalise_only_if_asked(pair):
    for normalise in (False, True):
        term = pair(normalise=normalise)[0]
        assert {norm.training for norm in term.norms} == {normalise}
        assert not any(norm.training for norm in term.eval().norms)


def test_the_untouched_half_of_shufflenetv2_has_margin_0(pair):
    term, student, teacher = pair("resnet8", "shufflenetv2")
    term.begin_epoch(1, student, teacher, Two())
    level = [theirs for _, theirs in term.levels].index(0)
    margins = term.get_buffer(f"margins{level}")
    assert margins[:58].abs().max() == 0
    assert margins[58:].max() < 0


@pytest.mark.parametrize("images, seen", [(4, [4]), (5, [4, 2]), (1000, [4, 2])])
def test_so_many_images_are_looked_at(pair, images, seen):
    term, student, teacher = pair(images=images)
    looked = []
    student.register_forward_pre_hook(lambda _, given: looked.append(len(given[0])))
    term.begin_epoch(1, student, teacher, Two())
    assert looked == seen


def test_pairs_and_values_that_cannot_be(pair):
    with pytest.raises(BadInput, match="mgd: no stage of the student has the size"):
        pair("shufflenetv1", "resnet8")
    term, student, _ = pair()
    with pytest.raises(BadInput, match="ImageNetShuffleNetV2 does not say which batch norms"):
        term.begin_epoch(1, student, build("shufflenetv2x0.5", 10), Two())
