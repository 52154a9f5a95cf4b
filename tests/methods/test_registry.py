"""What every registered term must bring along, and how it bears inputs that test_every_term.py does not have.

A new term is tested here without a line of its own; the first test fails until its value is compared with a published one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.catalogue.terms import term, term_names
from kdbench.methods import build_term
from kdbench.methods.pkt import pkt_loss


HERE = Path(__file__).parent
ELSEWHERE = {"sskd": ("test_sskd.py", "test_losses_and_gradients_equal_the_published_code")}
"""Where a term is compared with the published code, if not in test_golden.py."""

SIZE = 8
EQUAL_EMBEDDINGS = {"ccl", "ega", "embedding-mse", "nce"}
EQUAL_MAPS = {"fsp"}


def sibling(name):
    """Another test module of this folder."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", term_names())
def test_its_value_and_gradient_are_compared_with_the_published_code(name):
    if name in ELSEWHERE:
        file, test = ELSEWHERE[name]
        assert f"def {test}(" in (HERE / file).read_text()
        return
    assert name in sibling("test_golden").TERMS, f"'{name}' needs a file in tests/golden"


@pytest.mark.parametrize("name", sorted(path.stem for path in (HERE.parent / "golden").glob("*.npz")))
def test_every_golden_file_is_used(name):
    tests = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    golden = sibling("test_golden")
    assert name in {*golden.PARTS, *golden.FUNCTIONS} or f'"{name}.npz"' in tests
    assert np.load(HERE.parent / "golden" / f"{name}.npz").files


@pytest.fixture(params=term_names())
def name(request):
    return request.param


@pytest.fixture
def context(name, context, equal_context, with_part):
    if name in EQUAL_MAPS:
        return dataclasses.replace(
            context, teacher=dataclasses.replace(context.teacher, features=context.student.features)
        )
    return with_part(name, equal_context if name in EQUAL_EMBEDDINGS else context)


@pytest.fixture
def run(name, context, make_outputs, make_batch, leaves):
    """run(change, size=8, half=…): the loss, and all gradients, after a change of both networks' outputs."""

    def make(change, size=SIZE, half=None):
        torch.manual_seed(0)
        loss = build_term(name, dataclasses.replace(context, batch_size=max(size, 4))).train()
        rows = size * (1 + term(name).views)
        student, teacher = (change(make_outputs(shapes, rows, seed)) for seed, shapes in
                            ((1, context.student), (2, context.teacher)))  # fmt: skip
        for leaf in leaves(student):
            leaf.requires_grad_()
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            value = (loss.initial_loss if loss.initial else loss)(student, teacher, make_batch(size))
        value.backward()
        return value, [leaf.grad for leaf in [*leaves(student), *loss.parameters()] if leaf.grad is not None]

    return make


def everywhere(change):
    """Outputs with every tensor changed."""
    return lambda out: type(out)(
        change(out.logits), change(out.embedding), *([change(x) for x in xs] for xs in out[2:])
    )


def check(loss, grads, most=1e4):
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert grads
    assert all(grad.isfinite().all() and grad.abs().max() < most for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_under_autocast(run, dtype):
    """The gradients come back in the precision of what they belong to."""
    loss, grads = run(everywhere(lambda x: x.to(dtype)), half=dtype)
    check(loss, grads)
    assert {grad.dtype for grad in grads} <= {dtype, torch.float32}


def test_loud_maps_in_half_precision(run):
    """Gram entries of such maps reach 1e7: too much for half precision."""
    check(*run(everywhere(lambda x: (100 * x).half()), half=torch.float16), most=1e6)


def leaves_of(loss):
    """All tensors to which a backward pass brings a gradient, by identity."""
    found, todo, seen = {}, [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        todo += [following for following, _ in node.next_functions]
    return found


def test_what_gets_a_gradient_is_the_students_or_a_parameter_of_the_term(
    name, context, make_outputs, make_batch, leaves
):
    """So all of it trains and is saved, and nothing of the teacher does, or of the part that was trained on it."""
    loss = build_term(name, context).train()
    rows = SIZE * (1 + term(name).views)
    student, teacher = make_outputs(context.student, rows, 1, True), make_outputs(context.teacher, rows, 2)
    value = (loss.initial_loss if loss.initial else loss)(student, teacher, make_batch(SIZE))
    reached, parameters = set(leaves_of(value)), {id(p) for p in loss.parameters() if p.requires_grad}
    outputs = {id(x) for x in leaves(student)}
    assert reached & outputs
    assert reached <= outputs | parameters
    assert parameters <= reached


LOGITS = {
    "zero": torch.zeros_like,
    "equal": lambda x: torch.full_like(x, 0.3),
    "certain": lambda x: 200 * torch.nn.functional.one_hot(torch.arange(len(x)) % x.shape[1], x.shape[1]).float(),
    "certain of another": lambda x: 200 * torch.nn.functional.one_hot(5 + torch.arange(len(x)) % 5, x.shape[1]).float(),
}


@pytest.mark.parametrize("case", LOGITS)
def test_degenerate_logits(run, case):
    check(*run(lambda out: out._replace(logits=LOGITS[case](out.logits))))


PAIRS = {
    "zero": torch.zeros_like,
    "coincident": lambda x: x[:1].expand_as(x).clone(),
    "opposite": lambda x: torch.cat([x[:1], -x[:1]] * (len(x) // 2)),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("size", [2, 6])
def test_a_batch_that_has_nothing_to_tell_apart(run, name, case, size):
    """Two images, or a short last batch, whose outputs are all 0, the same, or each other's opposite."""
    if term(name).full_batches:
        size = 4
    check(*run(everywhere(PAIRS[case]), size=size), most=1e7 if name == "ft" else 1e4)


def test_pkt_of_pooled_maps_has_all_of_its_digits():
    """Its terms cancel: the published code gives 2.04362e-7 here in float32, and this in float64."""

    def pooled(a, b):
        waves = torch.sin(a * torch.arange(64 * 256, dtype=torch.float64) ** 1.2 + b)
        return (0.6 + 0.3 * waves).reshape(64, 256).float()

    student = pooled(0.7, 0.1).requires_grad_()
    loss = pkt_loss(student, pooled(0.3, 0.5))
    loss.backward()
    assert loss.item() == pytest.approx(2.04396210e-7, rel=1e-5)
    assert loss.dtype == student.grad.dtype == torch.float32


DEFAULTS = {
    "ab": {"initial_epochs": 30, "margin": 1.0},
    "cc": {"width": 128},
    "ccl": {"temperature": 0.1},
    "crd": {"negatives": 16384, "momentum": 0.5, "temperature": 0.07, "width": 128, "mode": "exact"},
    "ega": {"node": 1.0, "edge": 0.3},
    "fitnet": {"layer": 2, "regressor": True},
    "fsp": {"initial_epochs": 30},
    "ft": {"share": 0.5},
    "hkd": {"first": 100.0, "diagonal": "exact"},
    "irg": {"transformations": False},
    "kd": {"temperature": 4.0},
    "mgd": {"maximum": "signed", "update_interval": 2, "normalise": False, "images": 20000},
    "nce": {"temperature": 0.1},
    "online-kd": {"temperature": 3.0, "ramp_epochs": 80},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "semckd": {
        "temperature": 1.0, "preactivation": False, "variant": "full", "student_layer": None, "teacher_layer": None,
    },
    "sskd": {
        "pretext": "contrastive", "transforms": "rotations", "transformed_weight": 2.7, "pretext_weight": 10.0,
        "temperature": 4.0, "pretext_temperature": 0.5, "kept_transformed": 1.0, "kept_pretext": 0.75,
    },
    "vid": {"initial_variance": 5.0, "epsilon": 1e-05},
}  # fmt: skip
"""What the papers' code uses, where a suite says nothing else."""


@pytest.mark.parametrize("name", term_names())
def test_hyperparameters_default_to_the_published_ones(name):
    assert {key: found.default for key, found in term(name).hyperparameters.items()} == DEFAULTS.get(name, {})
