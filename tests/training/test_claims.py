"""What the docstrings of single terms promise of a real step: who skips it, what it counts, whose gradient goes where."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from kdbench.models import build
from kdbench.suite.specs import Scenario
from kdbench.training import jobs
from kdbench.training.build import student_trainer
from kdbench.training.trainer import Trainer


CPU = torch.device("cpu")


@pytest.fixture
def guides(monkeypatch):
    """The teachers' sides of the cohorts that have been trained."""
    found, make = [], jobs.open_teacher

    def spy(*args):
        found.append(make(*args))
        return found[-1]

    monkeypatch.setattr(jobs, "open_teacher", spy)
    return found


@pytest.fixture
def head_gradients(monkeypatch, guides):
    """For each step of a student: the gradients of the teacher's new layers before it and after it."""
    found, step = [], Trainer.step

    def spy(trainer, batch, teacher, *args):
        head = list(guides[-1].head.parameters()) if teacher else []  # none: the teacher's own training
        before = [parameter.grad.clone() for parameter in head]
        step(trainer, batch, teacher, *args)
        if head:
            found.append((before, [parameter.grad for parameter in head]))

    monkeypatch.setattr(Trainer, "step", spy)
    return found


READ_EMBEDDINGS = [{"ce": 1, "ega": 50}, {"ce": 1, "ccl": 50}]


def test_no_gradient_of_a_students_loss_reaches_the_teachers_new_layers(bench, make_run, guides, head_gradients):
    """In the cohort's own steps; after them the layers are what they are beside a student that reads only logits."""
    runs = [make_run(terms, "simultaneous", {"epochs": 1}) for terms in ({"ce": 1, "kd": 1}, *READ_EMBEDDINGS)]
    shop, alone = bench("together"), bench("alone")
    shop.train(*runs)
    assert all(shop.store.run(run.id).done() for run in runs)
    assert len(head_gradients) == 3 * len(runs)
    for before, after in head_gradients:
        assert max(gradient.abs().max() for gradient in before) > 0
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for run in runs[:2]:
        alone.train(run)
    states = [guide.head.state_dict() for guide in guides]
    assert len(states) == 3
    assert all(torch.equal(value, state[key]) for state in states[1:] for key, value in states[0].items())


def steps(shop, run):
    """How many steps a run has taken, by its batch norms' count."""
    return load_file(shop.store.run(run.id).weights_file)["bn1.num_batches_tracked"].item()


def test_semckd_leaves_the_short_batch_out_and_its_neighbours_see_it(bench, make_run, monkeypatch):
    """40 images in batches of 16, 16 and 8: who has taken which is read off the weights after each step."""
    sizes, step = {}, Trainer.step

    def spy(trainer, batch, *args):
        before = trainer.network.fc.weight.detach().clone()
        step(trainer, batch, *args)
        if not torch.equal(before, trainer.network.fc.weight):
            sizes.setdefault(trainer.record.id, []).append(len(batch))

    monkeypatch.setattr(Trainer, "step", spy)
    methods = ({"ce": 1, "kd": 1}, {"ce": 1, "kd": 1, "semckd": 10}, {"ce": 1, "crd": {"negatives": 8}})
    runs = [make_run(terms, recipe={"epochs": 1}) for terms in methods]
    shop = bench()
    shop.train(*runs)
    assert [sizes[run.id] for run in runs] == [[16, 16, 8], [16, 16], [16, 16, 8]]
    assert [steps(shop, run) for run in runs] == [3, 2, 3]


def test_crd_counts_the_images_of_the_quarter_that_is_left(bench, make_run):
    """K / n, n in Z and the banks' rows: by hand, for 10 of the data set's 40 images."""
    shop = bench()
    run = make_run({"ce": 1, "crd": {"negatives": 6, "width": 16}}, scenario=Scenario(fraction=0.25))
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    teacher = build("resnet8", 10).eval()
    term = student_trainer(run, shop.store, teacher, stream.labels, CPU).terms["crd"]
    images = len(stream)
    assert images == 10
    batch = next(iter(stream.epoch(1)))
    with torch.no_grad():
        student, taught = build("resnet8", 10).eval()(batch.images), teacher(batch.images)
        again = copy.deepcopy(term)
        torch.manual_seed(5)
        loss = term(student, taught, batch)
        torch.manual_seed(5)
        drawn = again.negatives.draw(batch.indices, relax=False)
        expected = sum(
            by_hand(linear(mine.embedding), bank, drawn, images)
            for linear, mine, bank in (
                (again.embed_student, student, again.teacher_bank),
                (again.embed_teacher, taught, again.student_bank),
            )
        )
    assert len(term.student_bank) == len(term.teacher_bank) == images
    assert drawn.columns.max() < images
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def by_hand(embedding, bank, drawn, images):
    """One side's loss, image by image, with the six negatives that each drew."""
    unit = torch.nn.functional.normalize(embedding.double())
    scores = [torch.exp(bank[c[u]].double() @ e / 0.07) for e, c, u in zip(unit, *drawn, strict=True)]
    z, noise = images * torch.cat(scores).mean(), 6 / images
    loss = torch.zeros((), dtype=torch.float64)
    for found, *others in (row / z for row in scores):
        assert len(others) == 6
        loss -= (found / (found + noise)).log() + sum((noise / (p + noise)).log() for p in others)
    return loss / len(unit)


def test_sskd_ranks_by_the_teacher(bench, make_run, monkeypatch):
    """In a real step: what is selected follows from the teacher's scores, whatever the student's are."""
    from kdbench.methods import sskd
    from kdbench.methods.sskd import ranks
    from kdbench.suite.specs import Adapter

    run = make_run({"ce": 1, "kd": 1}, recipe={"epochs": 1})
    part = Adapter(parent=run.teacher, dataset=run.dataset, term="sskd", recipe=run.recipe)
    uses = make_run({"ce": 0.1, "kd": 0.9, "sskd": 1}).terms
    run = run.model_validate(run.model_copy(update={"terms": uses, "adapters": (part,)}).model_dump())
    ranked, compared, transfer = [], [], sskd.transfer_loss

    def rank(scores, answers):
        ranked.append(scores.clone())
        return ranks(scores, answers)

    def spy(student, teacher, *rest):
        compared.append((student.detach().clone(), teacher.clone()))
        return transfer(student, teacher, *rest)

    monkeypatch.setattr(sskd, "ranks", rank)
    monkeypatch.setattr(sskd, "transfer_loss", spy)
    shop = bench()
    shop.train(run)
    assert shop.store.run(run.id).done()
    assert len(ranked) == len(compared) == 2 * 3
    for scores, (student, teacher) in zip(ranked, compared, strict=True):
        assert torch.equal(scores, teacher)
        assert not torch.equal(scores, student)
