"""CRD: its negatives, banks and constants."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.data.stream import DataSource
from kdbench.errors import BadInput
from kdbench.methods import build_term
from kdbench.methods.crd import Negatives, contrast_loss, exponentials, first_z, unit
from kdbench.models import build as build_network
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, Recipe, RunSpec, Scenario, WeightedTerm
from kdbench.training.build import student_trainer


SIZE = 8
UNEVEN = torch.tensor([0] * 9 + [1] * 3 + [3] * 12)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]


@pytest.fixture
def build(context):
    def make(**options):
        torch.manual_seed(0)
        return build_term("crd", context, **{"negatives": 20, **options}).train()

    return make


@pytest.fixture
def networks(context, make_outputs):
    return lambda seed=1, size=SIZE: (
        make_outputs(context.student, size, seed, True),
        make_outputs(context.teacher, size, seed + 1),
    )


def counted(drawn, row):
    """The images that a row contrasts with: its columns that count, without the positive."""
    return drawn.columns[row, 1:][drawn.mask[row, 1:]]


@pytest.mark.parametrize("count", [1, 5, 12, 13, 40])
def test_negatives_are_of_other_classes(count):
    torch.manual_seed(0)
    negatives = Negatives(UNEVEN, count)
    indices = torch.arange(24)
    for _ in range(20):
        drawn = negatives.draw(indices, relax=False)
        assert torch.equal(drawn.columns[:, 0], indices)
        for row in range(24):
            images = counted(drawn, row)
            assert len(images) == count
            assert (UNEVEN[images] != UNEVEN[row]).all()
            assert len(images.unique()) == count or count > 12


def test_replacement_begins_where_a_class_leaves_too_few_others():
    assert not Negatives(UNEVEN, 12).replace
    assert Negatives(UNEVEN, 13).replace


@pytest.mark.parametrize("count", [4, 40])
def test_every_image_of_another_class_is_as_likely(count):
    torch.manual_seed(1)
    negatives, hits, draws = Negatives(UNEVEN, count), torch.zeros(24, 24), 2000
    for _ in range(draws):
        drawn = negatives.draw(torch.arange(24), relax=False)
        hits.scatter_add_(1, drawn.columns[:, 1:], drawn.mask[:, 1:].float())
    other = UNEVEN[:, None] != UNEVEN[None]
    share = hits / draws / (count / other.sum(1, keepdim=True))
    assert share[~other].max() == 0
    assert (share[other] - 1).abs().max() < 0.25
    assert (share[other] - 1).abs().mean() < 0.05


def test_two_images_share_no_more_negatives_than_two_shuffles_would():
    torch.manual_seed(2)
    labels = torch.arange(400) % 2
    negatives = Negatives(labels, 50)
    shared = []
    for _ in range(500):
        first, second = (
            set(counted(drawn, 0).tolist()) for drawn in halves(negatives.draw(torch.tensor([0, 2]), relax=False))
        )
        shared.append(len(first & second))
    assert sum(shared) / len(shared) == pytest.approx(50 * 50 / 200, rel=0.15)


def halves(drawn):
    return (drawn._replace(columns=drawn.columns[i:][:1], mask=drawn.mask[i:][:1]) for i in range(2))


def test_relax_takes_any_image_of_the_class():
    torch.manual_seed(0)
    negatives, indices = Negatives(UNEVEN, 5), torch.arange(24)
    drawn = [negatives.draw(indices, relax=True).columns[:, 0] for _ in range(100)]
    assert all(torch.equal(UNEVEN[positive], UNEVEN) for positive in drawn)
    for row in range(24):
        assert len({int(positive[row]) for positive in drawn}) == int((UNEVEN[row] == UNEVEN).sum())


def test_the_draw_follows_the_seed(build, networks, make_batch):
    def loss(seed):
        term = build()
        torch.manual_seed(seed)
        return term(*networks(), make_batch(SIZE)).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


@pytest.mark.parametrize("options", [{}, {"negatives": 100}, {"mode": "relax"}])
def test_the_loss_equals_rows_gathered_one_by_one(options, build, networks, make_batch):
    term, (student, teacher), batch = build(**options), networks(), make_batch(SIZE)
    banks = {"teacher": term.student_bank.clone(), "student": term.teacher_bank.clone()}
    torch.manual_seed(3)
    drawn = term.negatives.draw(batch.indices, relax=term.relax)
    torch.manual_seed(3)
    loss = term(student, teacher, batch)
    expected = 0.0
    for who, embedding in (("student", student.embedding), ("teacher", teacher.embedding)):
        u = torch.nn.functional.normalize(getattr(term, f"embed_{who}")(embedding))
        rows = []
        for i in range(SIZE):
            images = torch.cat([drawn.columns[i, :1], counted(drawn, i)])
            rows.append((banks[who][images] @ u[i] / 0.07).exp())
        scores = torch.stack(rows)
        p = scores / (50 * scores.mean())
        c = term.negatives.count / 50
        expected += -((p[:, 0] / (p[:, 0] + c)).log() + (c / (p[:, 1:] + c)).log().sum(1)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_banks_move_after_the_step_and_only_for_the_batch(build, networks, make_batch):
    term, (student, teacher), batch = build(), networks(), make_batch(SIZE)
    before = term.student_bank.clone()
    term(student, teacher, batch).backward()
    assert torch.equal(term.student_bank, before)
    term.after_step()
    u = unit(term.embed_student(student.embedding))
    expected = torch.nn.functional.normalize(0.5 * before[:SIZE] + 0.5 * u)
    torch.testing.assert_close(term.student_bank[:SIZE], expected)
    assert torch.equal(term.student_bank[SIZE:], before[SIZE:])
    assert not term.student_bank.requires_grad


def test_a_training_loop_without_after_step_gives_the_same_losses(build, networks, make_batch):
    losses = []
    for calls in (True, False):
        term = build(negatives=4)
        torch.manual_seed(0)
        losses.append([])
        for _ in range(3):
            losses[-1].append(term(*networks(), make_batch(SIZE)).item())
            if calls:
                term.after_step()
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


def test_the_constants_are_set_by_the_first_step(build, networks, make_batch):
    term, batch = build(), make_batch(SIZE)
    assert (term.student_z.item(), term.teacher_z.item()) == (0, 0)
    torch.manual_seed(4)
    drawn = term.negatives.draw(batch.indices, relax=False)
    student, teacher = networks()
    scores = exponentials(unit(term.embed_student(student.embedding)), term.teacher_bank, drawn.columns, 0.07)
    torch.manual_seed(4)
    term(student, teacher, batch)
    first = term.student_z.clone(), term.teacher_z.clone()
    assert first[0].item() == pytest.approx(first_z(scores, drawn.mask, 50).item())
    term(*networks(seed=7), batch)
    assert (term.student_z, term.teacher_z) == first
    assert not term.student_z.requires_grad


def test_state_is_saved_and_loaded(build, networks, make_batch):
    term, batch = build(), make_batch(SIZE)
    term(*networks(), batch)
    term.after_step()
    state = term.state_dict()
    saved = {"student_bank", "teacher_bank", "student_z", "teacher_z"}
    assert saved | {f"embed_{who}.{part}" for who in ("student", "teacher") for part in ("weight", "bias")} == set(
        state
    )
    other = build()
    other.load_state_dict({key: value.clone() for key, value in state.items()})
    losses = []
    for each in (term, other):
        for seed in (5, 6):
            torch.manual_seed(seed)
            losses.append(each(*networks(seed=seed), batch).item())
    assert losses[:2] == losses[2:]


def test_far_apart_embeddings_are_told_from_the_noise_in_float32():
    """Sixteen thousand logarithms near 0 do not drown in the logarithm of c."""
    wide = torch.full((2, 16385), 1e-4, dtype=torch.float64)
    mask, noise = torch.ones_like(wide), 16384 / 50000
    exact = contrast_loss(wide, mask, noise)
    assert contrast_loss(wide.float(), mask, noise).item() == pytest.approx(exact.item(), rel=1e-6)


def test_training_sets_that_cannot_be_contrasted_are_refused(context):
    with pytest.raises(BadInput, match="labels of the training set"):
        build_term("crd", dataclasses.replace(context, labels=None))
    with pytest.raises(BadInput, match="one class"):
        build_term("crd", dataclasses.replace(context, labels=torch.full((50,), 3)))


def test_noisy_labels_decide_who_is_another(build, networks, context):
    """The labels of the training set count, as the student learns them, not those of the data set."""
    labels = (torch.arange(50) // 25).flip(0)
    term = build_term("crd", dataclasses.replace(context, labels=labels), negatives=25)
    drawn = term.negatives.draw(torch.arange(SIZE), relax=False)
    assert sorted(counted(drawn, 0).tolist()) == list(range(25, 50))
    term(*networks(), Batch(torch.zeros(SIZE, 3, 8, 8), labels[:SIZE], torch.arange(SIZE))).backward()


@pytest.mark.parametrize("scenario", [Scenario(fraction=0.25), Scenario(label_noise=0.25)], ids=str)
def test_a_run_contrasts_the_images_of_its_scenario(scenario, tmp_path):
    cpu = torch.device("cpu")
    data = DatasetSpec(name="digits", train_per_class=8, test_per_class=1)
    recipe = Recipe(epochs=1, batch=16, lr=0.01, momentum=0.9)
    terms = (WeightedTerm(name="crd", weight=0.8, hyperparameters={"negatives": 12}),)
    spec = RunSpec(student="resnet8", dataset=data, recipe=recipe, scenario=scenario, terms=terms)
    stream = DataSource(tmp_path, cpu).stream(data, scenario, recipe, 0)
    teacher = build_network("resnet8x4", 10).eval()
    trainer = student_trainer(spec, Store(tmp_path), teacher, stream.labels, cpu)
    term = trainer.terms["crd"]
    images = 20 if scenario.fraction < 1 else 80
    assert len(term.student_bank) == len(term.teacher_bank) == images == len(stream)
    assert torch.equal(term.negatives.labels, stream.labels)
    before = term.student_bank.clone()
    trainer.begin_epoch(1)
    seen = []
    for batch in stream.epoch(1):
        with torch.no_grad():
            taught = teacher(batch.images)
        trainer.step(batch, taught)
        seen.append(batch.indices)
        assert (term.student_bank[batch.indices] != before[batch.indices]).any(1).all()
    assert sorted(torch.cat(seen).tolist()) == list(range(images))
    assert term.student_z > 0
