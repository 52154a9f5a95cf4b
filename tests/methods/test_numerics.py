"""What single terms do at the edges: where the published code breaks down, and where shapes differ."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from kdbench.errors import BadInput
from kdbench.methods import TermContext, build_term
from kdbench.methods.ab import build_connector
from kdbench.methods.functional import in_float32, pool_to_smaller, unit_rows
from kdbench.methods.hkd import hkd_loss, rounded_hkd_loss
from kdbench.methods.pkt import pkt_loss
from kdbench.methods.rkd import cosines, relative_distances, rkd_angle_loss, rkd_distance_loss
from kdbench.methods.sp import sp_loss
from kdbench.methods.vid import vid_loss
from kdbench.models.outputs import Shapes


READS = {
    "ce": {"logits"},
    "kd": {"logits"},
    "fitnet": {"f2"},
    "at": {"f1", "f2", "f3"},
    "sp": {"f3"},
    "vid": {"f1", "f2", "f3"},
    "rkd": {"embedding"},
    "pkt": {"embedding"},
    "semckd": {"f1", "f2", "f3"},
    "ft": {"f3"},
}


@pytest.fixture
def normal():
    rng = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=rng)


@pytest.mark.parametrize("name", READS)
def test_gradient_reaches_exactly_what_the_term_reads(name, context, with_part, make_outputs, make_batch):
    context = with_part(name, context)
    student = make_outputs(context.student, 8, 1, True)
    build_term(name, context)(student, make_outputs(context.teacher, 8, 2), make_batch(8)).backward()
    named = {"logits": student.logits, "embedding": student.embedding}
    named |= {f"f{i}": x for i, x in enumerate(student.features)}
    named |= {f"pre{i}": x for i, x in enumerate(student.preactivations, 1)}
    assert {key for key, x in named.items() if x.grad is not None and x.grad.abs().max() > 0} == READS[name]


def test_shared_helpers(normal):
    wide, narrow = normal(2, 3, 8, 8), normal(2, 5, 4, 4)
    a, b = pool_to_smaller(wide, narrow)
    c, d = pool_to_smaller(narrow, wide)
    assert torch.allclose(a, wide.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)), atol=1e-6)
    assert b is narrow
    assert c is narrow
    assert torch.equal(d, a)
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]]), epsilon=1e-6)
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))


def test_losses_run_in_float32_under_autocast(normal):
    product = in_float32(lambda a, *, b: a @ b)
    a, b = normal(4, 4), normal(4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = product(a, b=b)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, a @ b.float())


@pytest.mark.parametrize("name", ["cc", "crd"])
def test_projections_run_in_float32_under_autocast(name, context, make_outputs, make_batch):
    """The loss of the same embeddings is the same, bit for bit; bf16 projections change its sixth or fifth digit."""
    term, batch, values = build_term(name, context), make_batch(8), []
    student, teacher = make_outputs(context.student, 8, 1), make_outputs(context.teacher, 8, 2)
    for bf16 in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            values.append(copy.deepcopy(term)(student, teacher, batch))
    assert torch.equal(*values)


def test_zero_samples_get_no_gradient(normal):
    maps = normal(6, 3, 2, 2)
    maps[2] = 0
    embedding = normal(6, 5)
    embedding[2] = 0
    for loss, x in ((sp_loss, maps), (pkt_loss, embedding)):
        x.requires_grad_()
        loss(x, normal(6, 7)).backward()
        assert x.grad[[0, 1, 3, 4, 5]].abs().max() > 0
        assert x.grad.abs().max() < 10
    assert embedding.grad[2].abs().max() == 0


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-7, 1e-5])
def test_rkd_of_coincident_embeddings(loss, gap, normal):
    embedding = normal(8, 16)
    embedding[1] = embedding[0]
    embedding[1, 0] += gap
    embedding.requires_grad_()
    loss(embedding, normal(8, 16)).backward()
    assert embedding.grad.isfinite().all()
    assert embedding.grad.abs().max() < 1


def test_rkd_relations_equal_the_difference_vectors(normal):
    """Also for a tight cluster far from the origin, where a float32 product would lose the cosines."""
    embedding = normal(1, 64) + 1e-3 * normal(12, 64)
    wide = embedding.double()
    difference = wide[:, None] - wide[None]
    direction = torch.nn.functional.normalize(difference, dim=2)
    expected = torch.einsum("ijd,ikd->ijk", direction, direction).float()
    torch.testing.assert_close(cosines(embedding), expected, rtol=0, atol=1e-5)
    lengths = difference.norm(dim=2)
    relative = (lengths / lengths[lengths > 0].mean()).float()
    torch.testing.assert_close(relative_distances(embedding), relative, rtol=1e-5, atol=0)


def test_rkd_gradient_by_finite_differences(normal):
    embedding, teacher = normal(5, 4).double().requires_grad_(), normal(5, 6).double()
    assert torch.autograd.gradcheck(lambda e: rkd_distance_loss(e, teacher), embedding)
    assert torch.autograd.gradcheck(lambda e: rkd_angle_loss(e, teacher), embedding)


@pytest.mark.parametrize("shift", [0, 1])
def test_hkd_with_the_diagonal_that_rounding_leaves(normal, shift):
    """Its gradient follows every operation of the published float32 code, and is nowhere near the exact one."""
    student, teacher = normal(64, 2048).relu() + shift, normal(64, 4096).relu() + shift

    def published(x):
        lengths, again = (x**2).sum(1).expand(64, 64).t(), (x**2).sum(1).expand(64, 64)
        distances = torch.sqrt(torch.clamp(lengths + again - 2 * torch.mm(x, x.t()), min=0) + 1e-6)
        unit = x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-6)
        kernels = 1 / (1 + distances), (torch.mm(unit, unit.t()) + 1) / 2
        return [kernel / kernel.sum(1, keepdim=True) for kernel in kernels]

    def divergences(x, y):
        parts = [((t - s) * (t.log() - s.log())).mean() for s, t in zip(published(x), published(y), strict=True)]
        return parts[1] + parts[0]

    def gradient(loss, *pair):
        x = pair[0].clone().requires_grad_()
        value = loss(x, pair[1])
        value.backward()
        return value.double(), x.grad.double()

    value, expected = gradient(divergences, student, teacher)
    found, rounded = gradient(rounded_hkd_loss, student, teacher)
    assert found.item() == pytest.approx(value.item(), rel=1e-5)
    assert (rounded - expected).norm() < 1e-3 * expected.norm()
    _, exact = gradient(hkd_loss, student, teacher)
    _, wide = gradient(hkd_loss, student.double(), teacher.double())
    assert (exact - wide).norm() < 1e-4 * wide.norm()
    assert (rounded - wide).norm() > 0.05 * wide.norm()


def test_the_diagonal_is_an_option_of_hkd(context, make_outputs, make_batch):
    nets = (make_outputs(context.student, 8, 1), make_outputs(context.teacher, 8, 2))
    pairs = [(s.flatten(1), t.flatten(1)) for s, t in zip(*(net.stages for net in nets), strict=True)]
    for diagonal, loss in (("exact", hkd_loss), ("rounded", rounded_hkd_loss)):
        first, *rest = (loss(*pair) for pair in pairs)
        assert (
            build_term("hkd", context, diagonal=diagonal)(*nets, make_batch(8))
            == torch.stack([100 * first, *rest]).sum()
        )


def test_vid_variance(context, normal):
    term = build_term("vid", context, initial_variance=2.0)
    for rho in term.rhos:
        assert torch.allclose(torch.nn.functional.softplus(rho) + term.epsilon, torch.tensor(2.0))
    assert all(parameter.requires_grad for parameter in term.parameters())
    assert len(list(term.parameters())) == 3 * (3 + 1)
    huge = vid_loss(normal(2, 3, 4, 4), normal(2, 3, 4, 4), torch.full((3,), 200.0), 1e-5)
    assert huge.item() == pytest.approx(0.5 * math.log(200), rel=0.01)


def shapes(*maps):
    return Shapes(10, 16, ((4, 16, 16), *maps))


def pair(student, teacher):
    return TermContext(student, teacher, classes=10, train_size=50, batch_size=8)


@pytest.mark.parametrize(
    "h_s, h_t, kernel, stride, compared",
    [(8, 4, 3, 2, 4), (4, 8, 4, 2, 8), (8, 8, 1, 1, 8), (8, 6, 3, 1, 6), (3, 8, 3, 1, 3), (2, 8, 3, 1, 2)],
)
def test_fitnet_geometry(h_s, h_t, kernel, stride, compared, make_outputs, make_batch):
    student, teacher = shapes((6, h_s, h_s)), shapes((9, h_t, h_t))
    term = build_term("fitnet", pair(student, teacher), layer=1)
    convolution, norm, relu = term.regressor
    assert convolution.kernel_size == (kernel, kernel)
    assert convolution.stride == (stride, stride)
    assert convolution.bias is not None
    assert isinstance(convolution, torch.nn.ConvTranspose2d) == (2 * h_s == h_t)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert isinstance(relu, torch.nn.ReLU)
    s, t = make_outputs(student, 4, 1), make_outputs(teacher, 4, 2)
    assert term.regressor(s.features[1]).shape == (4, 9, compared, compared)
    assert term(s, t, make_batch(4)).isfinite()


def test_fitnet_without_regressor_is_the_plain_error(make_outputs, make_batch):
    same = shapes((6, 8, 8))
    s, t = make_outputs(same, 4, 1), make_outputs(same, 4, 2)
    term = build_term("fitnet", pair(same, same), layer=1, regressor=False)
    assert not list(term.parameters())
    assert term(s, t, make_batch(4)) == (s.features[1] - t.features[1]).square().mean()


@pytest.mark.parametrize(
    "term, hyper, message",
    [
        ("fitnet", {"layer": 3}, "layer must lie between 0 and 2"),
        ("fitnet", {"regressor": False}, "a regressor is needed"),
        ("vid", {"epsilon": 5.0}, r"epsilon must be below initial_variance, not 5\.0 and 5\.0"),
    ],
)
def test_values_that_make_no_sense_are_refused(term, hyper, message):
    context = pair(shapes((6, 8, 8), (8, 4, 4)), shapes((6, 8, 8), (9, 4, 4)))
    with pytest.raises(BadInput, match=message):
        build_term(term, context, **hyper)


@pytest.mark.parametrize("name", ["at", "vid"])
def test_networks_of_different_depth_pair_up_to_the_shorter(name, make_outputs, make_batch):
    student = shapes((6, 8, 8), (8, 4, 4), (8, 2, 2))
    teacher = shapes((9, 16, 16), (9, 4, 4), (9, 4, 4), (9, 2, 2))
    s, t = make_outputs(student, 4, 1), make_outputs(teacher, 4, 2)
    term = build_term(name, pair(student, teacher))
    whole = term(s, t, make_batch(4))
    shorter = t._replace(features=t.features[:-1], preactivations=t.preactivations[:-1])
    assert torch.equal(whole, term(s, shorter, make_batch(4)))


@pytest.mark.parametrize("loss", [pkt_loss, sp_loss])
def test_short_vectors_count_as_much_as_long_ones(loss, normal):
    """All that is compared are directions."""
    ours, theirs = normal(6, 4), normal(6, 5)
    assert loss(ours, theirs) > 0
    assert torch.allclose(loss(ours * 0.02, theirs * 0.02), loss(ours, theirs), rtol=1e-3)


def test_ab_doubles_a_side_at_most():
    assert build_connector((6, 4, 4), (8, 8, 8))(torch.zeros(2, 6, 4, 4)).shape == (2, 8, 8, 8)
    assert build_connector((6, 4, 4), (8, 4, 4))(torch.zeros(2, 6, 4, 4)).shape == (2, 8, 4, 4)
    for side in (5, 7, 9, 16):
        with pytest.raises(BadInput, match=f"4 to {side} is too far"):
            build_connector((6, 4, 4), (8, side, side))
