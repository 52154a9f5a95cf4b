"""What holds for every loss term. A new one is tested here without a line of its own."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch

from kdbench.catalogue.terms import term, term_names
from kdbench.errors import BadInput
from kdbench.methods import Term, build_term


SIZE = 8
STEEP = {"ft": 1e7}
"""Gradients on constant maps: each of three batch norms in a row multiplies by up to 1/√1e-5 what does not vary."""
EQUAL_EMBEDDINGS = {"ccl", "ega", "embedding-mse", "nce"}
EQUAL_MAPS = {"fsp"}


def each(outputs, change):
    """Outputs with every tensor but the logits changed."""
    maps, before = ([change(x) for x in xs] for xs in (outputs.features, outputs.preactivations))
    return outputs._replace(embedding=change(outputs.embedding), features=maps, preactivations=before)


def zero(x):
    return torch.zeros_like(x)


def same_sample(x):
    return x[:1].expand_as(x).clone()


def constant(x):
    return torch.full_like(x, 0.3)


def one_dead(x):
    return torch.cat([torch.zeros_like(x[:1]), x[1:]])


def twins(x):
    return torch.cat([x[1:2], x[1:]])


def near_twins(x):
    return torch.cat([x[1:2] * (1 + 1e-7), x[1:]])


def tiny(x):
    return x * 1e-12


CHANGES = [zero, same_sample, constant, one_dead, twins, near_twins, tiny]
DEGENERATE = (
    {f"student {change.__name__}": (change, None) for change in CHANGES}
    | {f"teacher {change.__name__}": (None, change) for change in CHANGES}
    | {f"both {change.__name__}": (change, change) for change in CHANGES}
)


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
def build(name, context):
    """Build the term after seeding, so that two calls give the same initial weights."""

    def make(seed=0) -> Term:
        torch.manual_seed(seed)
        return build_term(name, context).train()

    return make


@pytest.fixture
def networks(name, context, make_outputs):
    """Outputs of student (leaves) and teacher, for images and, where the term looks at them, their copies."""

    def make(size=SIZE, grad=True):
        size *= 1 + term(name).views
        return make_outputs(context.student, size, 1, grad), make_outputs(context.teacher, size, 2)

    return make


def loss_of(term, student, teacher, batch):
    """What the term has the student learn: in its initial stage, if it has one."""
    return (term.initial_loss if term.initial else term)(student, teacher, batch)


def gradients(term, outputs, leaves):
    return [leaf.grad for leaf in [*leaves(outputs), *term.parameters()] if leaf.grad is not None]


def check_sane(loss, grads, most=1e4):
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads)
    assert all(grad.abs().max() < most for grad in grads)


def test_value_and_gradient(build, networks, make_batch, leaves):
    term, (student, teacher) = build(), networks()
    loss = loss_of(term, student, teacher, make_batch(SIZE))
    loss.backward()
    grads = gradients(term, student, leaves)
    check_sane(loss, grads)
    assert any(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves(student))
    assert all(p.grad is not None for p in term.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_outputs(case, name, build, networks, make_batch, leaves):
    term, (student, teacher) = build(), networks(grad=False)
    of_student, of_teacher = DEGENERATE[case]
    student = each(student, of_student) if of_student else student
    teacher = each(teacher, of_teacher) if of_teacher else teacher
    for leaf in leaves(student):
        leaf.requires_grad_()
    loss = loss_of(term, student, teacher, make_batch(SIZE))
    loss.backward()
    check_sane(loss, gradients(term, student, leaves), STEEP.get(name, 1e4))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_short_batch(size, build, networks, make_batch, leaves):
    term, (student, teacher) = build(), networks(size)
    if term.full_batches:
        with pytest.raises(ValueError, match=f"batches of {SIZE} images, not {size}"):
            loss_of(term, student, teacher, make_batch(size))
        return
    loss = loss_of(term, student, teacher, make_batch(size))
    loss.backward()
    check_sane(loss, gradients(term, student, leaves))


def test_one_class_batch(build, networks, make_batch, leaves):
    term, (student, teacher) = build(), networks()
    batch = make_batch(SIZE)
    loss = loss_of(term, student, teacher, dataclasses.replace(batch, labels=torch.zeros_like(batch.labels)))
    loss.backward()
    check_sane(loss, gradients(term, student, leaves))


def test_inputs_stay_as_they_are_and_the_teacher_gets_no_gradient(build, networks, make_batch, leaves):
    """The teacher's outputs come out of a trainable layer, detached, as the training loop hands them over."""
    term, (student, teacher) = build(), networks()
    gain = torch.ones((), requires_grad=True)
    teacher = each(teacher, lambda x: (x * gain).detach())._replace(logits=(teacher.logits * gain).detach())
    before = [x.detach().clone() for x in [*leaves(student), *leaves(teacher)]]
    loss_of(term, student, teacher, make_batch(SIZE)).backward()
    after = [*leaves(student), *leaves(teacher)]
    assert gain.grad is None
    assert all(x.grad is None for x in leaves(teacher))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_saved_and_loaded_it_gives_the_same_loss(build, networks, make_batch):
    first, (student, teacher) = build(seed=1), networks()
    batch = make_batch(SIZE)
    loss_of(first, student, teacher, batch)
    second = build(seed=2)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(5)
    expected = loss_of(first, student, teacher, batch)
    torch.manual_seed(5)
    assert torch.equal(loss_of(second, student, teacher, batch), expected)


def test_bfloat16_autocast(build, networks, make_batch):
    term, (student, teacher) = build(), networks(grad=False)
    batch = make_batch(SIZE)
    low = [each(x, torch.Tensor.bfloat16)._replace(logits=x.logits.bfloat16()) for x in (student, teacher)]
    wide = [each(x, torch.Tensor.float)._replace(logits=x.logits.float()) for x in low]
    twin = copy.deepcopy(term)
    expected = loss_of(term, *wide, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(twin, *low, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)


def test_it_follows_the_contract(name, build, context):
    """A file defines one term, and everything it can be told is keyword-only with a default."""
    term = build()
    assert isinstance(term, Term)
    assert term.context == context
    parameters = list(inspect.signature(type(term)).parameters.values())
    assert parameters[0].name == "context"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])


def test_unknown_and_mistyped_hyperparameters_are_refused(name, context):
    with pytest.raises(BadInput, match=f"{name}: unknown hyper-parameter 'no_such_thing'"):
        build_term(name, context, no_such_thing=1)
    parameters = inspect.signature(type(build_term(name, context))).parameters
    for key in list(parameters)[1:]:
        with pytest.raises(BadInput, match=f"{name}: {key} must be"):
            build_term(name, context, **{key: ["no", "such"]})


def test_a_term_with_an_initial_stage_is_silent_afterwards(name, build, networks, make_batch, context):
    if not build().initial:
        assert build().initial_epochs == 0
        with pytest.raises(NotImplementedError):
            build().initial_loss(*networks(), make_batch(SIZE))
        return
    assert build_term(name, context).initial_epochs == 30
    loss = build()(*networks(), make_batch(SIZE))
    assert (loss.item(), loss.requires_grad) == (0, False)
    with pytest.raises(BadInput, match="initial_epochs must be a whole number from 1 to 1,000,000, not 0"):
        build_term(name, context, initial_epochs=0)


NEW = {"pkt": (2, 0), "cc": (1, 1), "crd": (1, 1)}


def test_versions_are_those_of_the_runs_that_are_stored():
    """They are part of a run's id: another number makes all stored runs of the term unfindable."""
    assert {name: (term(name).version, term(name).bf16_version) for name in term_names()} == {
        name: NEW.get(name, (1, 0)) for name in term_names()
    }
