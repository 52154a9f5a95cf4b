"""SSKD: values of the authors' code, the selection by the teacher's rank, the heads, and every pretext task."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.errors import BadInput
from kdbench.methods import build_part, build_term
from kdbench.methods.ce import cross_entropy
from kdbench.methods.kd import kd_loss
from kdbench.methods.pretext import Contrastive, views_in
from kdbench.methods.sskd import ranks, top_fraction_mask, transfer_loss


GOLDEN = Path(__file__).parents[1] / "golden"
TASKS = ["contrastive", "exemplar", "jigsaw", "rotation"]
SIZE = 8


def u(*shape, a, b):
    """sin(a·n + b), n = 0, 1, 2, …, row by row."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).reshape(shape).float()


def losses(student_logits, teacher_logits, student, teacher, labels, share=0.75):
    """CE, KD, L_T and L_ss of logits and projections of images, each followed by its three copies."""
    task = Contrastive("rotations")
    answers = torch.arange(len(labels)).repeat_interleave(3)
    return (
        cross_entropy(student_logits[::4], labels),
        kd_loss(student_logits[::4], teacher_logits[::4], 4.0),
        transfer_loss(views_in(student_logits), views_in(teacher_logits), labels.repeat_interleave(3), 4.0, share=1.0),
        transfer_loss(task.scores(student), task.scores(teacher), answers, 0.5, share=share),
    )


@pytest.fixture
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "sskd.npz").items()}


def test_losses_and_gradients_equal_the_published_code(golden):
    names = ("student_logits", "teacher_logits", "student_projection", "teacher_projection", "labels")
    inputs = [golden[f"in.{name}"] for name in names]
    inputs[0].requires_grad_()
    inputs[2].requires_grad_()
    found = losses(*inputs)
    for loss, name in zip(found, ("ce", "kd", "tf", "ss"), strict=True):
        assert loss.item() == pytest.approx(golden[f"out.{name}"].item(), rel=1e-4)
    total = sum(weight * loss for weight, loss in zip((0.1, 0.9, 2.7, 10.0), found, strict=True))
    assert total.item() == pytest.approx(golden["out.loss"].item(), rel=1e-4)
    total.backward()
    for tensor, name in ((inputs[0], names[0]), (inputs[2], names[2])):
        expected = golden[f"grad.{name}"]
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_ranks_and_kept_rows_equal_the_published_code(golden):
    teacher, labels = golden["in.teacher_logits"], golden["in.labels"]
    found = ranks(views_in(teacher), labels.repeat_interleave(3))
    assert torch.equal(found, golden["out.rank_tf"])
    assert torch.equal(top_fraction_mask(found, 1.0).nonzero().flatten(), golden["out.keep_tf"].sort().values)
    scores = Contrastive("rotations").scores(golden["in.teacher_projection"])
    found = ranks(scores, torch.arange(8).repeat_interleave(3))
    assert torch.equal(found, golden["out.rank_ss"])
    assert torch.equal(top_fraction_mask(found, 0.75).nonzero().flatten(), golden["out.keep_ss"].sort().values)


def test_values_on_inputs_made_by_a_formula():
    zs, zt = 3 * u(32, 5, a=0.9, b=0.2), 3 * u(32, 5, a=0.4, b=0.7)
    hs, ht = u(32, 12, a=0.37, b=0.2), u(32, 16, a=0.23, b=0.6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    found = [*losses(zs, zt, hs, ht, labels), losses(zs, zt, hs, ht, labels, share=1.0)[3]]
    assert [loss.item() for loss in found] == pytest.approx(
        [1.6604554, 2.454758, 2.6740808, 0.32182006, 0.32878108], rel=1e-5
    )
    scores, own = Contrastive("rotations").scores(ht), torch.arange(8).repeat_interleave(3)
    assert F.cross_entropy(scores, own).item() == pytest.approx(2.4155268, rel=1e-5)
    found = ranks(scores, own)
    assert ((found > 0).sum().item(), top_fraction_mask(found, 0.75).sum().item()) == (24, 18)


def test_ranks_count_the_better_answers_and_ties_go_to_the_earlier():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 5.0, 5.0]])
    assert ranks(scores, torch.tensor([1, 1, 2])).tolist() == [2, 1, 1]
    assert ranks(scores, torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [1, 0, 0, 1, 0, 0]),
        (0.49, [1, 1, 0, 1, 0, 0]),
        (0.5, [1, 1, 1, 1, 0, 0]),
        (0.75, [1, 1, 1, 1, 0, 1]),
        (1.0, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_all_right_rows_are_kept_and_a_share_of_the_wrong_ones_by_rank(share, expected):
    assert top_fraction_mask(torch.tensor([0, 1, 1, 0, 4, 1]), share).int().tolist() == expected


def test_dropped_rows_do_not_shrink_the_loss_and_no_row_at_all_is_zero():
    teacher = torch.tensor([[5.0, 0.0], [5.0, 0.0], [4.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 0.0]], requires_grad=True)
    first = transfer_loss(student[:1], teacher[:1], torch.tensor([0]), 2.0, 0.0)
    some = transfer_loss(student, teacher, torch.tensor([0, 1, 1]), 2.0, 0.0)
    assert some.item() == pytest.approx(first.item(), rel=1e-6)
    some.backward()
    assert student.grad[0].abs().max() > 0
    assert student.grad[1:].abs().max() == 0
    assert transfer_loss(student, teacher, torch.tensor([1, 1, 1]), 2.0, 0.0).item() == 0


def test_ranks_come_from_the_teacher_and_not_from_the_student():
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    answers = torch.tensor([0, 0])
    loss = transfer_loss(student, teacher, answers, 1.0, 0.0)
    expected = kd_loss(student[:1], teacher[:1], 1.0)
    assert loss.item() == pytest.approx(expected.item())
    swapped = transfer_loss(student.flip(0), teacher.flip(0), answers, 1.0, 0.0)
    assert swapped.item() == pytest.approx(expected.item())


@pytest.fixture
def sskd(context, with_part):
    """sskd(**options): the term with its part."""

    def make(**options):
        own = {key: value for key, value in options.items() if key in ("pretext", "transforms")}
        torch.manual_seed(0)
        return build_term("sskd", with_part("sskd", context, **own), **options).train()

    return make


@pytest.fixture
def outputs(context, make_outputs):
    return make_outputs(context.student, 4 * SIZE, 1, True), make_outputs(context.teacher, 4 * SIZE, 2)


def expected_scores(task, head, embedding):
    rows = head(embedding).view(SIZE, 4, -1)
    if task == "contrastive":
        cosine = F.cosine_similarity(rows[:, 1:].flatten(0, 1)[:, None], rows[:, 0][None], dim=2)
        return cosine, torch.arange(SIZE).repeat_interleave(3)
    return rows[:, 1:].flatten(0, 1), None


@pytest.mark.parametrize("task", TASKS)
def test_every_task_by_the_book(sskd, outputs, make_batch, context, task):
    term, batch, (student, teacher) = sskd(pretext=task), make_batch(SIZE), outputs
    part = term.context.part
    kind = "jigsaw" if task == "jigsaw" else "rotations"
    assert term.transforms == part.transforms == kind
    ours, answers = expected_scores(task, term.head, student.embedding)
    theirs, _ = expected_scores(task, part.head, teacher.embedding)
    if task == "rotation":
        ours, theirs = term.head(student.embedding), part.head(teacher.embedding)
        answers = torch.arange(4).repeat(SIZE)
    elif task == "jigsaw":
        answers = batch.views["jigsaw"].labels
    elif task == "exemplar":
        answers = batch.indices.repeat_interleave(3)
    labels = batch.labels.repeat_interleave(3)
    logits = [x.logits.view(SIZE, 4, -1)[:, 1:].flatten(0, 1) for x in (student, teacher)]
    expected = 2.7 * transfer_loss(*logits, labels, 4.0, 1.0) + 10 * transfer_loss(ours, theirs, answers, 0.5, 0.75)
    assert term(student, teacher, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert part.loss(teacher, batch).item() == pytest.approx(F.cross_entropy(theirs, answers).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "ours", "theirs"),
    [("contrastive", (24, 24), (32, 32)), ("exemplar", (24, 50), (32, 50)), ("jigsaw", (24, 24), (32, 24)),
     ("rotation", (24, 4), (32, 4))],
)  # fmt: skip
def test_the_heads(sskd, task, ours, theirs):
    term = sskd(pretext=task)
    for head, (inner, outer) in ((term.head, ours), (term.context.part.head, theirs)):
        first, relu, last = head
        assert (first.in_features, first.out_features, last.out_features) == (inner, inner, outer)
        assert isinstance(relu, nn.ReLU)
    assert sorted(term.state_dict()) == [f"head.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]


@pytest.mark.parametrize("task", TASKS)
def test_the_part_learns_its_task_from_the_copies(context, make_outputs, make_batch, task):
    torch.manual_seed(0)
    part, teacher = build_part("sskd", context, pretext=task), make_outputs(context.teacher, 4 * SIZE, 2)
    optimiser = torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9)
    found = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = part.loss(teacher, make_batch(SIZE))
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < 0.9 * found[0]
    if task == "contrastive":
        assert min(found) > math.log(1 + (SIZE - 1) * math.exp(-2)), "cosines without temperature cannot go below"


def test_the_gradient_reaches_logits_and_embedding_of_the_student(sskd, outputs, make_batch, leaves):
    student, teacher = outputs
    term = sskd()
    term(student, teacher, make_batch(SIZE)).backward()
    assert student.logits.grad.view(SIZE, 4, -1)[:, 0].abs().max() == 0, "the images' own logits are CE's and KD's"
    assert student.logits.grad.view(SIZE, 4, -1)[:, 1:].abs().max() > 0
    assert student.embedding.grad.view(SIZE, 4, -1)[:, 0].abs().max() > 0
    assert all(leaf.grad is None for leaf in leaves(student)[2:])
    assert all(parameter.grad is None for parameter in term.context.part.parameters())


def test_each_weight_weighs_its_own_loss(sskd, outputs, make_batch):
    student, teacher = outputs
    both, first, second = (
        sskd(transformed_weight=a, pretext_weight=b)(student, teacher, make_batch(SIZE)).item()
        for a, b in ((2.0, 3.0), (1.0, 0.0), (0.0, 1.0))
    )
    assert both == pytest.approx(2 * first + 3 * second, rel=1e-5)
    assert min(first, second) > 0


@pytest.mark.parametrize(
    ("share", "weight", "other"),
    [
        ("kept_transformed", "transformed_weight", "pretext_weight"),
        ("kept_pretext", "pretext_weight", "transformed_weight"),
    ],
)
def test_each_share_selects_in_its_own_loss(sskd, outputs, make_batch, share, weight, other):
    own = [sskd(**{share: s, other: 0.0})(*outputs, make_batch(SIZE)).item() for s in (0.2, 1.0)]
    others = [sskd(**{share: s, weight: 0.0})(*outputs, make_batch(SIZE)).item() for s in (0.2, 1.0)]
    assert own[0] != own[1]
    assert others[0] == others[1]


@pytest.mark.parametrize("task", ["jigsaw", "rotation"])
def test_a_task_that_brings_its_transforms_takes_no_others(context, task):
    with pytest.raises(BadInput, match=f"the pretext '{task}' brings its own transforms"):
        build_part("sskd", context, pretext=task, transforms="four")


def test_exemplar_needs_the_whole_training_set(context, with_part):
    whole = with_part("sskd", context, pretext="exemplar")
    with pytest.raises(BadInput, match="tells 50 training images apart, and the student has 25"):
        build_term("sskd", dataclasses.replace(whole, train_size=25), pretext="exemplar")


def test_the_four_transforms_are_another_kind_of_copies(sskd):
    for task in ("contrastive", "exemplar"):
        assert sskd(pretext=task, transforms="four").transforms == "four"
