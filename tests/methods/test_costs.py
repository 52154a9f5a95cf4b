"""The measured costs that kdbench shows: of every term, and with as many parameters as the terms have now."""

import pytest
import torch

from kdbench.catalogue.terms import costs, term, term_names
from kdbench.methods import build_term
from kdbench.methods.term import TermContext
from kdbench.models import build
from kdbench.models.heads import Branch
from kdbench.models.outputs import measure_shapes


@pytest.fixture(scope="module")
def pair():
    """The context in which they were measured."""
    shapes = [measure_shapes(build(name), 32) for name in ("resnet8x4", "resnet32x4")]
    labels = torch.arange(50_000) % 100
    return TermContext(*shapes, 100, len(labels), 64, labels, branch=lambda: Branch(build("resnet8x4")))


@pytest.mark.parametrize("name", [name for name in term_names() if term(name).target.startswith("kdbench.")])
def test_every_term_was_measured(name, pair, with_part):
    cost = costs().of(name)
    assert cost.time > 0
    assert cost.memory > 0
    built = build_term(name, with_part(name, pair))
    assert cost.parameters == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert (cost.teacher == "none") == (not term(name).needs_teacher)


def test_kd_is_the_unit():
    kd = costs().of("KD")
    assert (kd.time, kd.memory, kd.parameters) == (1, 1, 0)
    assert costs().of("online-kd") == costs().of("online_kd")
    assert costs().of("no-such-method") is None
    assert costs().how(kd).startswith("resnet32x4 → resnet8x4, batch 64, ")
