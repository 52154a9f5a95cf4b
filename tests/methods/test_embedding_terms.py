"""cc, nst, irg, nce, ccl, ega and embedding-mse at the edges, and what each of their options does."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdbench.errors import BadInput
from kdbench.methods import build_term
from kdbench.methods.cc import cc_loss
from kdbench.methods.ega import ega_losses
from kdbench.methods.irg import edges, irg_loss
from kdbench.methods.nce import nce_loss
from kdbench.methods.nst import nst_loss
from kdbench.models.outputs import Shapes
from kdbench.suite.methods import formula
from kdbench.suite.protocol import bundled_protocol


SIZE = 8
READS = {
    "cc": {"embedding"},
    "nst": {"f1", "f2", "f3"},
    "irg": {"embedding"},
    "crd": {"embedding"},
    "nce": {"embedding"},
    "ccl": {"logits", "embedding"},
    "ega": {"embedding"},
    "embedding-mse": {"embedding"},
}

WEIGHTS = {
    ("crd", "cc"): "0.02·cc + 1·ce",
    ("crd", "nst"): "1·ce + 50·nst",
    ("crd", "crd"): "1·ce + 0.8·crd",
    ("crd", "crd+kd"): "1·ce + 0.8·crd + 1·kd",
    ("sskd", "crd"): "0.1·ce + 0.8·crd + 0.9·kd",
    ("semckd", "cc"): "0.02·cc + 1·ce + 1·kd",
    ("semckd", "irg"): "1·ce + 0.005·irg + 1·kd",
    ("semckd", "crd"): "1·ce + 0.8·crd + 1·kd",
    ("semckd", "semckd+crd"): "1·ce + 0.8·crd + 1·kd + 400·semckd",
    ("ega", "fitnet"): "1·ce + 100·embedding-mse",
    ("ega", "crd"): "1·ce + 0.8·crd",
    ("ega", "irg"): "1·ce + 0.16·irg",
    ("ega", "nce"): "1·ce + 1·nce",
    ("ega", "ccl"): "1·ccl + 1·ce",
    ("ega", "ega"): "1·ce + 0.8·ega",
    ("ega", "ega-no-node"): "1·ce + 0.8·ega(node=0.0)",
    ("ega", "ega-no-edge"): "1·ce + 0.8·ega(edge=0.0)",
    ("ega", "ega+kd"): "1·ce + 0.8·ega + 1·kd",
}


@pytest.mark.parametrize(("protocol", "method"), WEIGHTS)
def test_weights_of_the_papers(protocol, method):
    assert formula(bundled_protocol(protocol).terms[method]) == WEIGHTS[protocol, method]


@pytest.fixture
def normal():
    rng = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=rng)


@pytest.fixture
def networks(equal_context, make_outputs):
    return make_outputs(equal_context.student, SIZE, 1, True), make_outputs(equal_context.teacher, SIZE, 2)


def touched(student):
    named = {"logits": student.logits, "embedding": student.embedding}
    named |= {f"f{i}": x for i, x in enumerate(student.features)}
    named |= {f"pre{i}": x for i, x in enumerate(student.preactivations, 1)}
    return {key for key, x in named.items() if x.grad is not None and x.grad.abs().max() > 0}


@pytest.mark.parametrize("name", READS)
def test_gradient_reaches_exactly_what_the_term_reads(name, equal_context, networks, make_batch):
    build_term(name, equal_context)(*networks, make_batch(SIZE)).backward()
    assert touched(networks[0]) == READS[name]


@pytest.mark.parametrize("name", ["nce", "ccl", "ega", "embedding-mse"])
def test_embeddings_of_two_widths_are_refused(name, context):
    with pytest.raises(
        BadInput, match=f"{name} compares the embeddings themselves, and the student's has 24 values, the"
    ):
        build_term(name, context)


@pytest.mark.parametrize("name", ["cc", "crd"])
def test_both_linear_maps_train(name, context, make_outputs, make_batch):
    term = build_term(name, context)
    term(make_outputs(context.student, SIZE, 1), make_outputs(context.teacher, SIZE, 2), make_batch(SIZE)).backward()
    trained = {key for key, parameter in term.named_parameters() if parameter.grad.abs().max() > 0}
    maps = {f"embed_{who}.{part}" for who in ("student", "teacher") for part in ("weight", "bias")}
    assert trained == maps
    assert term.embed_student.out_features == 128


def test_cc_depends_on_the_order_and_is_0_for_one_sample(normal):
    s, t = normal(SIZE, 5), normal(SIZE, 5)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert cc_loss(s, t).item() != pytest.approx(cc_loss(s[order], t[order]).item(), rel=1e-3)
    assert cc_loss(s[:1], t[:1]) == 0


def test_nst_equals_the_products_of_all_pairs_of_channels(normal):
    s, t = normal(3, 5, 4, 4), normal(3, 7, 8, 8)
    x, y = (torch.nn.functional.normalize(m.flatten(2), dim=2) for m in (s, torch.nn.functional.avg_pool2d(t, 2)))

    def k(a, b):
        return (a[:, :, None] * b[:, None]).sum(3).square().mean()

    assert nst_loss(s, t).item() == pytest.approx((k(x, x) + k(y, y) - 2 * k(x, y)).item(), rel=1e-4)


def test_nst_of_a_map_and_its_shuffled_channels_is_0(normal):
    s = normal(3, 6, 4, 4)
    assert nst_loss(s, s.flip(1)).item() == pytest.approx(0, abs=1e-6)


def test_a_dead_channel_gets_no_gradient(normal):
    s = normal(3, 5, 4, 4)
    s[:, 2] = 0
    s.requires_grad_()
    nst_loss(s, normal(3, 5, 4, 4)).backward()
    assert s.grad[:, 2].abs().max() == 0
    assert s.grad[:, [0, 1, 3, 4]].abs().max() > 0


def test_irg_distances_equal_the_difference_vectors(normal):
    """Also for a tight cluster far from the origin, where a float32 product would lose them."""
    x = normal(1, 64) + 1e-3 * normal(12, 64)
    squared = (x.double()[:, None] - x.double()[None]).square().sum(2)
    torch.testing.assert_close(edges(x), (squared / squared.max()).float(), rtol=1e-5, atol=0)


def test_irg_leaves_the_vertices_out_where_widths_differ(normal):
    s, t = normal(SIZE, 5), normal(SIZE, 5)
    wide = torch.cat([t, torch.zeros(SIZE, 2)], dim=1)
    vertex = (s - t).square().mean().item()
    assert irg_loss(s, t).item() == pytest.approx(irg_loss(s, wide).item() + vertex, rel=1e-5)


def test_irg_gradient_by_finite_differences(normal):
    """The largest distance is part of the graph."""
    x, t = normal(5, 4).double().requires_grad_(), normal(5, 6).double()
    assert torch.autograd.gradcheck(lambda e: irg_loss(e, t), x)


def test_irg_transformations_add_the_pairs_of_stages(equal_context, networks, make_batch):
    plain, full = (build_term("irg", equal_context, transformations=on) for on in (False, True))
    student, teacher = networks
    loss = full(student, teacher, make_batch(SIZE))
    loss.backward()
    assert touched(student) == {"embedding", "f1", "f2"}  # f3 has no partner
    change = [(edges(n.stages[0]) - edges(n.stages[1])).square().mean() for n in networks]
    extra = (change[0] - change[1]).square()
    assert (loss - plain(student, teacher, make_batch(SIZE))).item() == pytest.approx(extra.item(), rel=1e-2)


def test_irg_transformations_need_two_stages(equal_context):
    one_stage = dataclasses.replace(equal_context.student, features=equal_context.student.features[:2])
    with pytest.raises(BadInput, match="pairs of stages"):
        build_term("irg", dataclasses.replace(equal_context, student=one_stage), transformations=True)


def test_nce_takes_all_samples_of_the_class_as_positives(normal):
    s, t, labels = normal(6, 4), normal(6, 4), torch.tensor([0, 1, 0, 2, 1, 0])
    u, v = (torch.nn.functional.normalize(x) for x in (s, t))
    p = torch.softmax(u @ v.T / 0.1, dim=1)
    rows = [-(p[i][labels == y].log().mean() + (1 - p[i][labels != y]).log().mean()) for i, y in enumerate(labels)]
    assert nce_loss(s, t, labels, 0.1).item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_nce_of_one_class_has_positives_alone(normal):
    s, t = normal(6, 4).requires_grad_(), normal(6, 4)
    loss = nce_loss(s, t, torch.zeros(6, dtype=torch.long), 0.1)
    u, v = (torch.nn.functional.normalize(x) for x in (s, t))
    assert loss.item() == pytest.approx(-torch.log_softmax(u @ v.T / 0.1, dim=1).mean().item(), rel=1e-5)
    loss.backward()
    assert s.grad.isfinite().all()


def test_nce_of_certain_mistakes_is_finite():
    """Every student's embedding is exactly that of a sample of the other class."""
    s = torch.eye(4).requires_grad_()
    loss = nce_loss(s, torch.eye(4).flip(0), torch.tensor([0, 0, 1, 1]), 0.01)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.abs().max() < 1e3


def test_ega_without_node_and_without_edge_are_its_parts(equal_context, networks, make_batch):
    def loss(**options):
        return build_term("ega", equal_context, **options)(*networks, make_batch(SIZE)).item()

    node, edge = (each.item() for each in ega_losses(networks[0].embedding, networks[1].embedding))
    assert loss(edge=0.0) == pytest.approx(node)
    assert loss(node=0.0, edge=1.0) == pytest.approx(edge)
    assert loss() == pytest.approx(node + 0.3 * edge)


def test_ega_of_equal_and_of_constant_embeddings(normal):
    s = normal(SIZE, 16).requires_grad_()
    _, edge = ega_losses(s, s.detach().clone())
    edge.backward()
    assert edge.item() == 0
    assert s.grad.abs().max() == 0
    constant = normal(SIZE, 16)
    constant[3] = 0.3
    constant.requires_grad_()
    sum(ega_losses(constant, normal(SIZE, 16))).backward()
    assert constant.grad.isfinite().all()
    assert constant.grad[3].abs().max() == 0


def test_ega_correlates_samples_over_their_values(normal):
    s, t = normal(SIZE, 16), normal(SIZE, 16)
    whole = torch.corrcoef(torch.cat([t, s]))
    node, edge = ega_losses(s, t)
    assert node.item() == pytest.approx(torch.linalg.norm(whole[:SIZE, SIZE:] - torch.eye(SIZE)).item(), rel=1e-5)
    assert edge.item() == pytest.approx(torch.linalg.norm(whole[:SIZE, :SIZE] - whole[SIZE:, SIZE:]).item(), rel=1e-5)


def test_networks_of_different_depth_pair_up_to_the_shorter(make_outputs, make_batch, equal_context):
    student = Shapes(10, 24, ((4, 16, 16), (6, 8, 8), (8, 4, 4), (8, 2, 2)))
    teacher = Shapes(10, 24, ((4, 16, 16), (9, 16, 16), (9, 4, 4), (9, 4, 4), (9, 2, 2)))
    context = dataclasses.replace(equal_context, student=student, teacher=teacher)
    s, t = make_outputs(student, 4, 1), make_outputs(teacher, 4, 2)
    shorter = t._replace(features=t.features[:-1], preactivations=t.preactivations[:-1])
    for term in (build_term("nst", context), build_term("irg", context, transformations=True)):
        assert torch.equal(term(s, t, make_batch(4)), term(s, shorter, make_batch(4)))
