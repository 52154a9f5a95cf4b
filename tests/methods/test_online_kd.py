"""ONE: the equation, its ramp, and what learns from what."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from kdbench.errors import BadInput
from kdbench.methods import build_term


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(z, shared, labels, gate, bias, epoch, temperature=3.0, length=80):
    """The loss of three branches' logits z [3, B, K] with fresh batch norms, in float64."""
    scores = shared.mean((2, 3)) @ gate.T + bias
    scores = (scores - scores.mean(0)) / np.sqrt(scores.var(0) + 1e-5)
    g = softmax(np.maximum(scores, 0))
    ensemble = sum(g[:, [i]] * z[i] for i in range(3))
    rows = np.arange(len(labels))
    loss = sum(-np.log(softmax(each)[rows, labels]).mean() for each in [*z, ensemble])
    p_e = softmax(ensemble / temperature) + 1e-7
    kl = sum((p_e * np.log(p_e / softmax(each / temperature))).sum(1).mean() for each in z)
    ramp = math.exp(-5 * (1 - min(epoch - 1, length) / length) ** 2)
    return loss + ramp * temperature**2 * kl


@pytest.fixture
def term(context):
    def make(**hyper):
        torch.manual_seed(4)
        return build_term("online_kd", context, **hyper).train()

    return make


@pytest.mark.parametrize("epoch", [1, 2, 41, 81, 300])
@pytest.mark.parametrize("hyper", [{}, {"temperature": 1.5, "ramp_epochs": 10}])
def test_against_the_equation(term, context, make_outputs, make_batch, epoch, hyper):
    one, student, batch = term(**hyper), make_outputs(context.student, 8, 1), make_batch(8)
    one.epoch = epoch
    shared = student.features[-2]
    z = np.stack([x.detach().double().numpy() for x in (student.logits, *(branch(shared) for branch in one.branches))])
    parts = (shared.double().numpy(), batch.labels.numpy())
    gate = [p.detach().double().numpy() for p in one.gate.parameters()]
    expected = by_hand(z, *parts, *gate, epoch, hyper.get("temperature", 3.0), hyper.get("ramp_epochs", 80))
    assert one(student, student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_ramp_is_a_function_of_the_epoch_alone(term):
    one = term()
    for epoch, weight in {
        -3: math.exp(-5),
        0: math.exp(-5),
        1: math.exp(-5),
        41: math.exp(-1.25),
        81: 1,
        240: 1,
    }.items():
        one.epoch = epoch
        assert one.ramp() == pytest.approx(weight)
    assert "epoch" not in str(one.state_dict().keys())


def test_the_ensemble_learns_from_labels_alone(term, context, make_outputs, make_batch):
    """The gradient of the gate does not depend on the weight of what the branches learn from the ensemble."""
    grads = []
    for epoch in (1, 81):
        one = term()
        one.epoch = epoch
        one(make_outputs(context.student, 8, 1), None, make_batch(8)).backward()
        grads.append((one.gate.weight.grad, one.branches[0][0].weight.grad))
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-7)
    assert not torch.allclose(grads[0][1], grads[1][1], atol=1e-4)


def test_branches_differ_and_train_with_their_own_batch_norms(term, context, make_outputs, make_batch):
    one = term()
    assert len(one.branches) == 2
    assert not torch.equal(one.branches[0][0].weight, one.branches[1][0].weight)
    before = one.branches[1][1].running_var.clone()
    one(make_outputs(context.student, 8, 1), None, make_batch(8))
    assert not torch.equal(one.branches[1][1].running_var, before)


def test_one_image_leaves_the_gates_statistics_as_they_are(term, context, make_outputs, make_batch):
    one = term()
    one(make_outputs(context.student, 1, 1), None, make_batch(1)).backward()
    assert one.norm.running_mean.tolist() == [0, 0, 0]
    assert one.norm.num_batches_tracked == 0


def test_what_is_refused(context):
    with pytest.raises(BadInput, match=r"TermContext\.branch makes none"):
        build_term("online-kd", dataclasses.replace(context, branch=None))
