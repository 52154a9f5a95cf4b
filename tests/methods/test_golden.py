"""The terms against values and gradients of the published implementations (tests/golden)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.batch import Batch
from kdbench.methods import Setting, build_term
from kdbench.models.outputs import Shapes


GOLDEN = Path(__file__).parents[1] / "golden"

# term → (which part of Outputs, its name in the file); lists are numbered from 0
PARTS = {
    "kd": ("logits", "logits"),
    "at": ("stages", "features"),
    "sp": ("stages", "features"),
    "rkd": ("embedding", "embedding"),
    "pkt": ("embedding", "embedding"),
    "vid": ("stages", "feature"),
}


def inputs(golden, network, name):
    """{name in the file: tensor} of one network's inputs, in order."""
    keys = sorted(key for key in golden.files if key.startswith(f"in.{network}_{name}"))
    return {key.removeprefix("in."): torch.from_numpy(golden[key]) for key in keys}


def load_vid(term, golden):
    keys = sorted(key for key in golden.files if key.startswith("param."))
    scale, *weights = [nn.Parameter(torch.from_numpy(golden[key])) for key in keys]
    term.rhos[0] = scale
    for layer, weight in zip((0, 2, 4), weights, strict=True):
        term.regressors[0][layer].weight = weight


@pytest.mark.parametrize("name", PARTS)
def test_loss_and_gradient_equal_the_published_code(name, outputs_from):
    golden = np.load(GOLDEN / f"{name}.npz")
    part, stored = PARTS[name]
    student, teacher = inputs(golden, "student", stored), inputs(golden, "teacher", stored)
    for tensor in student.values():
        tensor.requires_grad_()
    s, t = ({part: list(x.values()) if part == "stages" else next(iter(x.values()))} for x in (student, teacher))
    s, t = outputs_from(**s), outputs_from(**t)
    size = len(s.logits)
    batch = Batch(torch.zeros(size, 3, 8, 8), torch.zeros(size, dtype=torch.long), torch.arange(size))
    term = build_term(name, Setting(Shapes.of(s), Shapes.of(t), classes=10, train_size=50, batch_size=size))
    if name == "vid":
        load_vid(term, golden)

    loss = term(s, t, batch)
    loss.backward()

    assert loss.shape == ()
    assert loss.item() == pytest.approx(golden["out.loss"].item(), rel=1e-4)
    for key, tensor in student.items():
        expected = torch.from_numpy(golden[f"grad.{key}"])
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert (tensor.grad - expected).norm() <= 1e-3 * expected.norm()
