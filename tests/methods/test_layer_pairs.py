"""What terms say of the maps that they associate."""

import dataclasses

import pytest
import torch

from kdbench.catalogue.terms import term_names
from kdbench.methods import Term, build_term


STAGES = {"at": 3, "vid": 3, "hkd": 3, "sp": 1, "fitnet": 1, "mgd": 3, "semckd": 9}


@pytest.fixture
def pair(context, make_outputs):
    return make_outputs(context.student, 8, 0), make_outputs(context.teacher, 8, 1)


def built(name, context, **hyper):
    torch.manual_seed(0)
    return build_term(name, context, **hyper).eval()


def test_the_terms_of_table_5_and_no_others_associate_maps(context, with_part):
    context, found = dataclasses.replace(context, teacher=context.student), set()
    for name in term_names():
        kind = type(build_term(name, with_part(name, context)))
        found |= {name} if kind.layer_pairs is not Term.layer_pairs else set()
    assert found == set(STAGES)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_pairs_of_raw_maps_and_what_is_compared(name, context, pair):
    student, teacher = pair
    pairs = built(name, context).layer_pairs(student, teacher)
    assert len(pairs) == STAGES[name]
    ours, theirs = ([*net.features, *net.preactivations] for net in pair)
    for each in pairs:
        assert any(each.student is maps for maps in ours)
        assert any(each.teacher is maps for maps in theirs)
        assert (each.weight is not None) == (name == "semckd")
        if each.compared:
            assert each.compared[0].shape == each.compared[1].shape
        assert (each.compared is not None) == (name in ("fitnet", "vid", "mgd", "semckd"))


@pytest.mark.parametrize("name", ["fitnet", "semckd"])
def test_the_loss_follows_from_what_is_compared(name, context, pair, make_batch):
    """So what is measured is what the term pulls together."""
    term = built(name, context)
    pairs = term.layer_pairs(*pair)
    total = 0.0
    for each in pairs:
        ours, theirs = each.compared
        errors = (ours - theirs).square().flatten(1).mean(1)
        total += (errors if each.weight is None else 3 * errors * each.weight).mean().item()
    assert term(*pair, make_batch(8)).item() == pytest.approx(total / len(pairs), rel=1e-5)


def test_sp_and_at_pair_the_stages_in_order(context, pair):
    student, teacher = pair
    for name, stages in (("at", range(3)), ("hkd", range(3)), ("sp", [2])):
        pairs = built(name, context).layer_pairs(student, teacher)
        assert all(each.student is student.stages[i] for each, i in zip(pairs, stages, strict=True))
        assert all(each.teacher is teacher.stages[i] for each, i in zip(pairs, stages, strict=True))


def test_fitnet_without_regressor_compares_the_maps_themselves(context, make_outputs):
    context = dataclasses.replace(context, teacher=context.student)
    student, teacher = make_outputs(context.student, 8, 0), make_outputs(context.student, 8, 1)
    (pair,) = built("fitnet", context, regressor=False).layer_pairs(student, teacher)
    assert torch.equal(pair.compared[0], student.features[2])
    assert torch.equal(pair.compared[1], teacher.features[2])


def test_mgd_compares_with_the_chosen_channels(context, pair):
    term = built("mgd", context)
    for each, level in zip(term.layer_pairs(*pair), range(3), strict=True):
        chosen = term.get_buffer(f"chosen{level}")
        assert torch.equal(each.compared[1], each.teacher[:, chosen].amax(1))


@pytest.mark.parametrize(
    "variant", ["full", "equal-allocation", "no-projection", "no-mlp", "no-similarity", "shared-allocation"]
)
def test_semckds_weights_sum_to_one_over_the_teachers_stages(context, pair, variant, make_batch):
    term = built("semckd", context, variant=variant)
    pairs = term.layer_pairs(*pair)
    weights = torch.stack([each.weight for each in pairs], 1).reshape(8, 3, 3)
    assert torch.allclose(weights.sum(2), torch.ones(8, 3))
    assert [each.student is pair[0].stages[n // 3] for n, each in enumerate(pairs)] == [True] * 9
    assert [each.teacher is pair[1].stages[n % 3] for n, each in enumerate(pairs)] == [True] * 9
    assert term.epoch_metrics() == {}
    term(*pair, make_batch(8))
    rows = term.epoch_metrics()["attention"]
    assert rows == [pytest.approx(row, abs=1e-6) for row in weights.mean(0).tolist()]


def test_a_fixed_pair_of_stages_is_the_only_one(context, pair):
    (only,) = built("semckd", context, student_layer=2, teacher_layer=1).layer_pairs(*pair)
    assert only.student is pair[0].stages[1]
    assert only.teacher is pair[1].stages[0]
    assert torch.equal(only.weight, torch.ones(8))
