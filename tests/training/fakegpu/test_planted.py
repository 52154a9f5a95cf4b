"""Losses that would be refused, or slow, on a GPU are caught by name and line."""

import pytest
from fakegpu import Recorder

from kdbench.training.trainer import Trainer


@pytest.fixture
def waits(monkeypatch):
    """What made the host wait within the steps of students."""
    found = set()
    plain = Trainer.step

    def step(self, *arguments):
        with Recorder() as recorder:
            plain(self, *arguments)
        found.update(recorder.waits)

    monkeypatch.setattr(Trainer, "step", step)
    return found


@pytest.mark.parametrize(
    ("term", "reason", "line"),
    [
        ("Asks", "_local_scalar_dense", "self.last = loss.item()"),
        ("PicksFromTheCPU", "by indices on the CPU", "return student.logits[pick].square().mean()"),
    ],
)
def test_a_loss_that_makes_the_host_wait_is_noted(gpu, bench, make_run, waits, term, reason, line):
    run, shop = make_run({"ce": 1, f"planted_terms:{term}": 1}), bench(device=gpu)
    shop.train(run)
    assert not shop.texts("failed")
    assert [wait for wait in waits if reason in wait and "planted_terms.py:" in wait and line in wait]


def test_a_loss_with_a_tensor_on_the_cpu_is_refused(gpu, bench, make_run):
    run, shop = make_run({"ce": 1, "planted_terms:HoldsATensor": 1}), bench(device=gpu)
    shop.train(run)
    (reason,) = shop.texts("failed")
    assert "aten.mul.Tensor of tensors on two devices, [16, 10] on fakegpu, [10] on cpu" in reason
    assert "planted_terms.py:" in reason
    assert "return (student.logits * factors).mean()" in reason
