"""Factor transfer's paraphraser and translator: layers, what trains when, and the loss between factors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from kdbench.errors import BadInput
from kdbench.methods import build_part, build_term
from kdbench.methods.ft import Paraphraser, factor_loss
from kdbench.models.outputs import Shapes


SIZE = 8


def layers(module, kind):
    return [(m.in_channels, m.out_channels) for m in module.modules() if type(m) is kind]


@pytest.fixture
def ft(context, with_part):
    """ft(share=…): the term with its part, in training mode."""

    def make(**options):
        torch.manual_seed(0)
        return build_term("ft", with_part("ft", context, **options), **options).train()

    return make


@pytest.mark.parametrize(("share", "factor"), [(0.5, 16), (0.3, 9), (1.0, 32), (0.04, 1)])
def test_the_layers(context, ft, share, factor):
    part = build_part("ft", context, share=share)
    assert layers(part, nn.Conv2d) == [(32, 32), (32, factor), (factor, factor)]
    assert layers(part, nn.ConvTranspose2d) == [(factor, factor), (factor, 32), (32, 32)]
    assert not [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    translate = ft(share=share).translate
    assert layers(translate, nn.Conv2d) == [(24, 24), (24, factor), (factor, factor)]
    assert [type(m).__name__ for m in translate] == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3
    for module in (part, translate):
        found = list(module.modules())
        assert all(m.negative_slope == 0.1 for m in found if isinstance(m, nn.LeakyReLU))
        assert all(m.kernel_size == (3, 3) and m.bias is not None for m in found if isinstance(m, nn.Conv2d))


def test_the_factor_keeps_height_and_width_and_the_reconstruction_is_leaky():
    part = Paraphraser(6, 3)
    with torch.no_grad():
        assert part.encode(torch.randn(2, 6, 5, 5)).shape == (2, 3, 5, 5)
    assert isinstance(part.decoder[-1], nn.LeakyReLU)


def test_the_part_learns_to_reconstruct_the_teachers_map(context, make_outputs, make_batch):
    torch.manual_seed(0)
    part, teacher = build_part("ft", context), make_outputs(context.teacher, SIZE, 2)
    optimiser = torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = part.loss(teacher, make_batch(SIZE))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad.abs().max() > 0 for parameter in part.parameters())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        restored = part.decoder(part.encoder(teacher.features[-1]))
    assert part.loss(teacher, None).item() == pytest.approx((restored - teacher.features[-1]).square().mean().item())


def test_the_term_compares_the_trained_factor(ft, context, make_outputs, make_batch):
    term, student, teacher = ft(), make_outputs(context.student, SIZE, 1), make_outputs(context.teacher, SIZE, 2)
    value = term(student, teacher, make_batch(SIZE))
    factor = term.context.part.encoder(teacher.features[-1])
    assert torch.equal(factor_loss(term.translate(student.features[-1]), factor), value)
    assert not [key for key in term.state_dict() if not key.startswith("translate.")]
    term.train()
    assert not term.context.part.training


def test_the_larger_factor_is_pooled(make_outputs, make_batch, context, with_part):
    large = dataclasses.replace(context.student, features=(*context.student.features[:3], (24, 8, 8)))
    wide = with_part("ft", dataclasses.replace(context, student=large))
    loss = build_term("ft", wide)(make_outputs(large, 4, 1), make_outputs(context.teacher, 4, 2), make_batch(4))
    assert loss.isfinite()


def test_a_share_that_leaves_nothing_is_refused(context):
    with pytest.raises(BadInput, match=r"share 0\.01 leaves no channel of the teacher's 32"):
        build_part("ft", context, share=0.01)


def test_without_its_part_it_says_so(context):
    with pytest.raises(BadInput, match="FT needs the Paraphraser trained on the teacher"):
        build_term("ft", context)
    shapes = Shapes(10, 8, ((4, 8, 8), (8, 4, 4)))
    other = dataclasses.replace(context, part=nn.Identity(), teacher=shapes)
    with pytest.raises(BadInput, match="Paraphraser"):
        build_term("ft", other)
