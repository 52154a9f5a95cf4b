"""The terms against values and gradients of the published implementations (tests/golden)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import Batch, TermContext
from kdbench.methods import build_term
from kdbench.methods.cc import cc_loss
from kdbench.methods.ccl import symmetric_kl
from kdbench.methods.ce import cross_entropy
from kdbench.methods.crd import contrast_loss, exponentials, first_z, move_rows
from kdbench.methods.ega import ega_losses
from kdbench.methods.ft import factor_loss
from kdbench.methods.hkd import hkd_loss
from kdbench.methods.irg import irg_loss, transformation_loss
from kdbench.methods.nce import nce_loss
from kdbench.methods.online_kd import divergence
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
    "semckd": ("stages", "features"),
    "nst": ("stages", "features"),
    "ab": ("stages", "features"),
    "fitnet": ("stages", "features"),
    "fsp": ("stages", "features"),
    "mgd": ("stages", "features"),
    "embedding_mse": ("embedding", "embedding"),
}
OPTIONS = {"fitnet": {"layer": 1}}
ABSOLUTE = ("mgd", "_absolute", {"maximum": "absolute"})


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


def load_semckd(term, golden):
    queries, keys, pairs = term.allocation.queries, term.allocation.keys, term.errors.pairs
    parts = {f"query_weight{i}": module for i, module in enumerate(queries)}
    parts |= {f"key_weight{j}": module for j, module in enumerate(keys)}
    parts |= {"regressor{}{}".format(*divmod(n, len(keys))): module for n, module in enumerate(pairs)}
    for name, module in parts.items():
        values = [golden[key] for key in golden.files if key.startswith(f"param.{name}.")]
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.data = torch.from_numpy(value).reshape(parameter.shape)


def load_fitnet(term, golden):
    values = [golden[key] for key in golden.files if key.startswith("param.")]
    for parameter, value in zip(term.regressor.parameters(), values, strict=True):
        parameter.data = torch.from_numpy(value).reshape(parameter.shape)


def load_mgd(term, golden):
    for level, norm in enumerate(term.norms):
        of = {key: torch.from_numpy(golden[f"param.{key}{level}"]) for key in ("chosen", "margins", "scale", "shift")}
        term.get_buffer(f"chosen{level}").copy_(of["chosen"].view(-1, norm.num_features))
        term.get_buffer(f"margins{level}").copy_(of["margins"])
        norm.weight.data, norm.bias.data = of["scale"], of["shift"]


LOAD = {"vid": load_vid, "semckd": load_semckd, "fitnet": load_fitnet, "mgd": load_mgd}


@pytest.mark.parametrize("name, variant, options", [*((name, "", OPTIONS.get(name, {})) for name in PARTS), ABSOLUTE])
def test_loss_and_gradient_equal_the_published_code(name, variant, options, outputs_from):
    golden = np.load(GOLDEN / f"{name}.npz")
    part, stored = PARTS[name]
    student, teacher = inputs(golden, "student", stored), inputs(golden, "teacher", stored)
    for tensor in student.values():
        tensor.requires_grad_()
    s, t = ({part: list(x.values()) if part == "stages" else next(iter(x.values()))} for x in (student, teacher))
    s, t = outputs_from(**s), outputs_from(**t)
    size = len(s.logits)
    batch = Batch(torch.zeros(size, 3, 8, 8), torch.zeros(size, dtype=torch.long), torch.arange(size))
    context = TermContext(Shapes.of(s), Shapes.of(t), classes=10, train_size=50, batch_size=size)
    term = build_term(name, context, **options).train()
    if name in LOAD:
        LOAD[name](term, golden)

    loss = (term.initial_loss if term.initial else term)(s, t, batch)
    loss.backward()

    assert loss.shape == ()
    assert loss.item() == pytest.approx(golden[f"out.loss{variant}"].item(), rel=1e-4)
    for key, tensor in student.items():
        expected = torch.from_numpy(golden[f"grad{variant}.{key}"])
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert (tensor.grad - expected).norm() <= 1e-3 * expected.norm()


def test_the_attention_of_semckd_equals_the_published_code(outputs_from):
    golden = np.load(GOLDEN / "semckd.npz")
    student, teacher = (list(inputs(golden, who, "features").values()) for who in ("student", "teacher"))
    shapes = [Shapes.of(outputs_from(stages=stages)) for stages in (student, teacher)]
    term = build_term("semckd", TermContext(*shapes, classes=10, train_size=50, batch_size=8))
    load_semckd(term, golden)
    expected = torch.from_numpy(golden["out.attention"])
    torch.testing.assert_close(term.allocation(student, teacher), expected, rtol=1e-4, atol=0)


def irg(x):
    maps = (x[f"{who}_features.{i}"] for who in ("student", "teacher") for i in range(2))
    return irg_loss(x["student_embedding"], x["teacher_embedding"]) + transformation_loss(*maps)


def ega(x):
    node, edge = ega_losses(x["student_nodes"], x["teacher_nodes"])
    return x["node_weight"] * node + x["edge_weight"] * edge


def nce(x, temperature=0.1):
    return nce_loss(x["student_nodes"], x["teacher_nodes"], x["labels"], temperature)


def crd(x):
    used = torch.ones_like(x["contrast_index"], dtype=torch.bool)
    sides = ("student_embedding", "memory_teacher"), ("teacher_embedding", "memory_student")
    scores = [exponentials(x[own], x[bank], x["contrast_index"], 0.07) for own, bank in sides]
    return sum(contrast_loss(each / first_z(each, used, 50), used, noise=12 / 50) for each in scores)


def online_kd(x):
    labels = [cross_entropy(each, x["labels"]) for each in (*x["logits"], x["ensemble"])]
    return sum(labels) + divergence(x["logits"], x["ensemble"], 3.0)


FUNCTIONS = {
    "ce": lambda x: cross_entropy(x["student_logits"], x["labels"]),
    "ft": lambda x: factor_loss(x["student_factor"], x["teacher_factor"]),
    "cc": lambda x: cc_loss(x["student_embedding"], x["teacher_embedding"]),
    "irg": irg,
    "nce": nce,
    "ccl": lambda x: nce(x) + symmetric_kl(x["student_logits"], x["teacher_logits"]),
    "ega": ega,
    "crd": crd,
    "online_kd": online_kd,
    "hkd_kernel": lambda x: hkd_loss(x["student"], x["teacher"]),
}
TERMS = {name.removesuffix("_kernel").replace("_", "-") for name in (*PARTS, *FUNCTIONS)}
"""The terms whose gradients are compared here, too."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_equals_the_published_code(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    given = {key.removeprefix("in."): torch.from_numpy(golden[key]) for key in golden.files if key.startswith("in.")}
    expected = {key.removeprefix("grad."): torch.from_numpy(golden[key]) for key in golden.files if "grad." in key}
    for key in expected:
        given[key].requires_grad_()
    loss = FUNCTIONS[name](given)
    loss.backward()
    assert loss.item() == pytest.approx(golden["out.loss"].item(), rel=1e-4)
    assert expected
    for key, gradient in expected.items():
        torch.testing.assert_close(given[key].grad, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


@pytest.mark.parametrize("name", ["ce", "nce", "ccl", "ega", "irg"])
def test_the_term_puts_its_functions_together_as_published(name, outputs_from):
    golden = np.load(GOLDEN / f"{name}.npz")
    x = {key.removeprefix("in."): torch.from_numpy(golden[key]) for key in golden.files if key.startswith("in.")}
    sides = []
    for who in ("student", "teacher"):
        embedding = x.get(f"{who}_nodes", x.get(f"{who}_embedding"))
        stages = [x[key] for key in sorted(x) if key.startswith(f"{who}_features.")]
        sides.append(
            outputs_from(logits=x.get(f"{who}_logits", x.get("student_logits")), embedding=embedding, stages=stages)
        )
    size = len(sides[0].logits)
    batch = Batch(torch.zeros(size, 3, 8, 8), x.get("labels", torch.zeros(size, dtype=torch.long)), torch.arange(size))
    context = TermContext(*map(Shapes.of, sides), classes=10, train_size=50, batch_size=size)
    weights = {key: float(x[f"{key}_weight"]) for key in ("node", "edge") if f"{key}_weight" in x}
    options = {"transformations": True} if name == "irg" else weights
    loss = build_term(name, context, **options)(*sides, batch)
    assert loss.item() == pytest.approx(golden["out.loss"].item(), rel=1e-4)


def test_the_banks_and_constants_of_crd_equal_the_published_code():
    golden = np.load(GOLDEN / "crd.npz")
    x = {key: torch.from_numpy(golden[key]) for key in golden.files}
    used = torch.ones_like(x["in.contrast_index"], dtype=torch.bool)
    for own, other in (("student", "teacher"), ("teacher", "student")):
        embedding, bank = x[f"in.{own}_embedding"], x[f"in.memory_{other}"]
        scores = exponentials(embedding, bank, x["in.contrast_index"], 0.07)
        torch.testing.assert_close(first_z(scores, used, 50), x[f"out.z_{own}"], rtol=1e-4, atol=0)
        moved = x[f"in.memory_{own}"].clone()
        move_rows(moved, x["in.index"], embedding, 0.5)
        torch.testing.assert_close(moved, x[f"out.memory_{own}_after"], rtol=1e-5, atol=1e-6)
