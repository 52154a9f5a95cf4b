"""Further branches of a student: in half precision, with every kind of student, and not stored."""

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.training.build import student_trainer


ONE = {"online-kd": {"weight": 1, "ramp_epochs": 2}}
SHORT = {"epochs": 2}
LABELS = torch.arange(40) % 10


def without_teacher(make_run, **fields):
    return make_run(ONE, **fields).model_copy(update={"teacher": None})


def test_what_is_kept_is_the_student(bench, make_run):
    plain, run = make_run({"ce": 1}, recipe={"epochs": 1}), without_teacher(make_run, recipe={"epochs": 1})
    shop = bench()
    shop.train(plain, run)
    sizes = [(shop.store.run(each.id).folder / "weights.safetensors").stat().st_size for each in (plain, run)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("student", "node"), [("wrn-10-1", None), ("mobilenetv2", 16)])
def test_a_step_in_half_precision(bench, make_run, student, node):
    """All that is trained moves, the student's stem and both branches among it, whose first weights are of their own."""
    run = without_teacher(make_run, student=student, recipe={"precision": "bf16", "node_embedding": node})
    one = student_trainer(run, bench().store, None, LABELS, torch.device("cpu"))
    modules = [one.network, *one.terms["online-kd"].branches]
    heads = [list(module.parameters())[-2] for module in modules]
    assert not any(torch.equal(heads[0], other) for other in heads[1:])
    assert not torch.equal(heads[1], heads[2])
    before = {p: p.detach().clone() for module in (one.network, one.terms) for p in module.parameters()}
    one.begin_epoch(1)
    one.step(Batch(torch.randn(8, 3, 16, 16), LABELS[:8], torch.arange(8)), None)
    still = [p.shape for p, value in before.items() if torch.equal(p, value)]
    assert still == []


def test_its_randomness_is_the_runs(bench, make_run):
    def branch(run):
        trainer = student_trainer(run, bench().store, None, LABELS, torch.device("cpu"))
        return next(trainer.terms["online-kd"].branches[0].parameters()), next(trainer.network.parameters())

    torch.manual_seed(1)
    first = branch(without_teacher(make_run))
    torch.manual_seed(2)
    assert all(torch.equal(*pair) for pair in zip(first, branch(without_teacher(make_run)), strict=True))
    other = branch(without_teacher(make_run, trial=1))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))
