"""SemCKD's variants and options, one property each that the others do not have."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from kdbench.errors import BadInput
from kdbench.methods import build_term
from kdbench.methods.functional import pool_to_smaller
from kdbench.suite.compatibility import incompatibilities
from kdbench.suite.methods import formula, parse_terms
from kdbench.suite.protocol import bundled_protocol


SIZE = 8
VARIANTS = ["full", "equal-allocation", "no-projection", "no-mlp", "no-similarity", "shared-allocation"]
OPTIONS = [
    *({"variant": variant} for variant in VARIANTS),
    {"temperature": 4.0},
    {"preactivation": True},
    {"variant": "no-similarity", "preactivation": True},
    {"student_layer": 1, "teacher_layer": 3},
]


@pytest.fixture
def build(context):
    def make(**options):
        torch.manual_seed(0)
        return build_term("semckd", context, **options).train()

    return make


@pytest.fixture
def networks(context, make_outputs):
    return make_outputs(context.student, SIZE, 1, True), make_outputs(context.teacher, SIZE, 2)


def weights(term, student, teacher):
    return term.allocation(student.stages, teacher.stages)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_variant_teaches_the_student_and_all_of_its_own_parts(options, build, networks, make_batch):
    """On small maps: without the MLPs' unit vectors, those of a network's size leave the softmax no gradient."""
    term, (student, teacher) = build(**options), networks
    for each in [*student.features, *student.preactivations, *teacher.features, *teacher.preactivations]:
        each.data *= 0.1
    loss = term(student, teacher, make_batch(SIZE))
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    for name, parameter in term.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    read = student.preactivations if options.get("preactivation") else student.stages
    other = student.stages if options.get("preactivation") else student.preactivations
    layers = [options["student_layer"] - 1] if "student_layer" in options else range(3)
    assert [i for i, x in enumerate(read) if x.grad is not None and x.grad.abs().max() > 0] == list(layers)
    assert all(x.grad is None for x in other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_of_a_student_stage_sum_to_one(variant, build, networks):
    found = weights(build(variant=variant, temperature=0.5), *networks)
    assert found.shape == (SIZE, 3, 3)
    torch.testing.assert_close(found.sum(2), torch.ones(SIZE, 3))
    assert (found >= 0).all()


def test_the_loss_is_the_weighted_sum_of_the_pairs_errors(build, networks, make_batch):
    term, (student, teacher) = build(), networks
    allocated, expected = weights(term, student, teacher), torch.zeros(())
    for s in range(3):
        for t in range(3):
            source, target = pool_to_smaller(student.stages[s], teacher.stages[t])
            projected = term.errors.pairs[3 * s + t](source)
            for b in range(SIZE):
                expected = expected + allocated[b, s, t] * (projected[b] - target[b]).square().mean() / (3 * SIZE)
    torch.testing.assert_close(term(student, teacher, make_batch(SIZE)), expected)


def test_projections_and_mlps_have_the_published_widths(build, context):
    term = build()
    channels = [(s[0], t[0]) for s in context.student.stages for t in context.teacher.stages]
    for project, (source, target) in zip(term.errors.pairs, channels, strict=True):
        shapes = [tuple(layer.weight.shape) for layer in project if isinstance(layer, nn.Conv2d)]
        wide = 2 * target
        assert shapes == [(wide, source, 1, 1), (wide, wide, 3, 3), (target, wide, 1, 1)]
        assert all(layer.bias is None for layer in project if isinstance(layer, nn.Conv2d))
    for mlp in [*term.allocation.queries, *term.allocation.keys]:
        assert [tuple(p.shape) for p in mlp.parameters()] == [(4, 8), (4,), (2, 4), (2,)]


def test_equal_allocation_is_the_full_one_with_equal_energies(build, networks, make_batch):
    full, equal = build(), build(variant="equal-allocation")
    equal.errors.load_state_dict(full.errors.state_dict())
    assert not list(equal.allocation.parameters())
    before = full(*networks, make_batch(SIZE))
    for query in full.allocation.queries:
        nn.init.zeros_(query.layers[2].weight)
        nn.init.zeros_(query.layers[2].bias)
    expected = equal(*networks, make_batch(SIZE))
    torch.testing.assert_close(full(*networks, make_batch(SIZE)), expected)
    assert abs(before - expected) > 1e-4


def test_vectors_of_length_zero_give_finite_gradients(build, networks, make_batch):
    """The published code divides 0 by 0 here."""
    term, (student, teacher) = build(), networks
    for mlp in [*term.allocation.queries, *term.allocation.keys]:
        nn.init.zeros_(mlp.layers[2].weight)
        nn.init.zeros_(mlp.layers[2].bias)
    term(student, teacher, make_batch(SIZE)).backward()
    assert all(x.grad.isfinite().all() for x in [*student.stages, *term.parameters()])


def test_shared_allocation_is_one_for_all_images_and_learns(build, networks, make_batch):
    term = build(variant="shared-allocation")
    first = weights(term, *networks)
    torch.testing.assert_close(first, torch.full((SIZE, 3, 3), 1 / 3))
    optimiser = torch.optim.SGD(term.parameters(), lr=1.0)
    term(*networks, make_batch(SIZE)).backward()
    optimiser.step()
    later = weights(term, *networks)
    assert torch.equal(later, later[:1].expand_as(later))
    assert (later - first).abs().max() > 1e-3
    full = weights(build(), *networks)
    assert (full - full[:1]).abs().max() > 1e-3


def test_without_similarity_matrices_an_image_is_weighted_by_itself(build, networks):
    student, teacher = networks
    changed = teacher._replace(features=[torch.cat([2 + x[:1], x[1:]]) for x in teacher.features])
    alone, together = build(variant="no-similarity"), build()
    before, after = (weights(alone, student, net) for net in (teacher, changed))
    torch.testing.assert_close(before[1:], after[1:], rtol=1e-5, atol=1e-6)
    assert (before[0] - after[0]).abs().max() > 1e-4
    before, after = (weights(together, student, net) for net in (teacher, changed))
    assert (before[1:] - after[1:]).abs().max() > 1e-4


def test_without_projection_only_similarities_count(build, networks, make_batch):
    """Shuffling all images' pixels alike changes no Gram matrix."""
    student, teacher = networks
    shuffled = student._replace(features=[x.flip(1, 2) for x in student.features])
    bare, full = build(variant="no-projection"), build()
    assert not [module for module in bare.modules() if isinstance(module, nn.Conv2d)]
    first, second = (bare(net, teacher, make_batch(SIZE)) for net in (student, shuffled))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0)
    assert abs(full(student, teacher, make_batch(SIZE)) - full(shuffled, teacher, make_batch(SIZE))) > 1e-4


def test_without_mlp_raw_similarities_pick_one_stage(build, networks):
    """Unit vectors keep all weights away from 0 and 1; linear ones of large Gram entries do not."""
    student, teacher = networks
    loud = student._replace(features=[30 * x for x in student.features])
    linear, full = weights(build(variant="no-mlp"), loud, teacher), weights(build(), loud, teacher)
    assert linear.amax(2).median() > 0.999
    assert full.max() < 0.79  # 1 / (1 + 2·exp(-2))
    assert full.min() > 0.06


def test_a_higher_temperature_brings_the_weights_together(build, networks):
    found = [weights(build(temperature=tau), *networks) for tau in (0.5, 1.0, 4.0, 1e6)]
    spread = [(each - 1 / 3).abs().max() for each in found]
    assert spread[0] > spread[1] > spread[2] > spread[3]
    assert spread[3] < 1e-5
    warm, plain = (build(temperature=tau).allocation for tau in (2.0, 1.0))
    maps = [net.stages for net in networks]
    torch.testing.assert_close(warm(*maps), torch.softmax(plain(*maps).log() / 2, dim=2))


def test_preactivations_are_read_in_both_networks(build, networks, make_batch):
    student, teacher = networks
    term, plain = build(preactivation=True), build()
    swap = [net._replace(features=[net.features[0], *net.preactivations]) for net in networks]
    torch.testing.assert_close(term(student, teacher, make_batch(SIZE)), plain(*swap, make_batch(SIZE)))
    blank = teacher._replace(features=[torch.zeros_like(x) for x in teacher.features])
    assert torch.equal(term(student, blank, make_batch(SIZE)), term(student, teacher, make_batch(SIZE)))


def test_a_fixed_pair_reads_that_pair_alone(build, networks, make_batch):
    student, teacher = networks
    term = build(student_layer=1, teacher_layer=3)
    loss = term(student, teacher, make_batch(SIZE))
    (project,) = term.errors.pairs
    source, target = pool_to_smaller(student.features[1], teacher.features[3])
    torch.testing.assert_close(loss, (project(source) - target).square().mean())
    others = teacher._replace(features=[*(torch.randn_like(x) for x in teacher.features[:3]), teacher.features[3]])
    assert torch.equal(term(student, others, make_batch(SIZE)), loss)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student_layer": 1}, "set both or neither"),
        ({"teacher_layer": 1}, "set both or neither"),
        ({"student_layer": 4, "teacher_layer": 1}, "student_layer must lie between 1 and 3"),
        ({"student_layer": 1, "teacher_layer": 4}, "teacher_layer must lie between 1 and 3"),
        ({"variant": "no-such"}, "variant must be one of 'full'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, build):
    with pytest.raises(BadInput, match=message):
        build(**options)


def test_batches_must_be_large_enough_and_the_training_set_too(context):
    with pytest.raises(BadInput, match="the batch must have at least 4 images, not 3"):
        build_term("semckd", dataclasses.replace(context, batch_size=3))
    with pytest.raises(BadInput, match="learns from full batches only, and 50 training images do not fill one of 64"):
        build_term("semckd", dataclasses.replace(context, batch_size=64))
    build_term("semckd", dataclasses.replace(context, batch_size=50))
    build_term("semckd", dataclasses.replace(context, batch_size=4))


def terms(**options):
    problems = []
    found = parse_terms({"ce": 1, "semckd": options}, lambda path, message: problems.append(message))
    assert not problems
    return found


def test_a_fixed_pair_is_checked_before_anything_runs():
    assert incompatibilities("vgg8", "resnet32x4", terms()) == []
    assert incompatibilities("vgg8", "resnet32x4", terms(student_layer=4, teacher_layer=3)) == []
    (reason,) = incompatibilities("vgg8", "resnet32x4", terms(student_layer=3, teacher_layer=4))
    assert reason == "semckd reads teacher_layer 4, but resnet32x4 has the layers 1 to 3"
    (reason,) = incompatibilities("vgg8", "resnet32x4", terms(student_layer=5, teacher_layer=1))
    assert reason == "semckd reads student_layer 5, but vgg8 has the layers 1 to 4"
    (reason,) = incompatibilities("vgg8", "resnet32x4", terms(teacher_layer=1))
    assert reason == "semckd fixes teacher_layer but no student_layer: set both or neither"


def test_the_protocol_has_the_method_and_the_ablations_of_table_6():
    methods = bundled_protocol("semckd").terms
    assert formula(methods["semckd"]) == "1·ce + 1·kd + 400·semckd"
    assert formula(methods["semckd+crd"]) == "1·ce + 0.8·crd + 1·kd + 400·semckd"
    for variant in VARIANTS[1:]:
        assert formula(methods[f"semckd-{variant}"]) == f"1·ce + 1·kd + 400·semckd(variant={variant})"


@pytest.mark.parametrize("variant", ["full", "no-projection"])
def test_errors_are_mean_squares_of_what_layer_pairs_compare(build, networks, variant):
    semckd = build(variant=variant).eval()
    student, teacher = networks
    sources, targets = semckd._maps(student, teacher)
    compared = semckd.errors.compared(sources, targets)
    expected = torch.stack([(ours - theirs).square().flatten(1).mean(1) for ours, theirs in compared], 1)
    assert torch.allclose(semckd.errors(sources, targets).flatten(1), expected, rtol=1e-5)
