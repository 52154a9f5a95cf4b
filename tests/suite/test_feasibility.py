"""Conditions that terms put on pairs of networks."""

from dataclasses import replace

import pytest

from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import term, term_names
from kdbench.errors import BadSuite
from kdbench.suite.compatibility import CONDITIONS, feature_maps, incompatibilities, matched_levels
from kdbench.suite.methods import parse_terms


def terms(**values):
    def fail(path, message):
        raise AssertionError((path, message))

    return parse_terms(values, fail)


def test_embeddings_are_compared_in_the_width_in_which_they_are_shown():
    assert incompatibilities("resnet8x4", "resnet32x4", terms(ega=1)) == []
    (reason,) = incompatibilities("resnet8x4", "wrn-40-2", terms(ega=1))
    assert "resnet8x4 shows 256 values and wrn-40-2 128" in reason
    assert incompatibilities("resnet8x4", "wrn-40-2", terms(ega=1, nce=1, ccl=1), (64, 64)) == []
    (reason,) = incompatibilities("resnet8x4", "wrn-40-2", terms(ega=1), (64, None))
    assert "resnet8x4 shows 64" in reason


@pytest.mark.parametrize("name", term_names())
def test_every_condition_of_a_term_exists(name):
    assert set(term(name).requires) <= CONDITIONS.keys()


def test_methods_without_conditions_are_always_possible():
    assert incompatibilities("resnet8", "vgg13", terms(ce=1, kd=1, at=1, sp=1, vid=1, rkd=1, pkt=1)) == []


def test_the_layer_must_exist_in_both_networks():
    assert incompatibilities("resnet8x4", "vgg13", terms(fitnet={"layer": 3})) == []
    (reason,) = incompatibilities("resnet8x4", "vgg13", terms(fitnet={"layer": 4}))
    assert reason == "fitnet reads layer 4, but resnet8x4 has the layers 0 to 3"
    (reason,) = incompatibilities("vgg8", "resnet32x4", terms(fitnet={"layer": 4}))
    assert "resnet32x4 has the layers 0 to 3" in reason


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vid", {"epsilon": 0.2, "initial_variance": 0.2}, "needs an epsilon below initial_variance"),
        ("ega", {"node": 0, "edge": 0}, "learns nothing with node 0 and edge 0"),
        ("rkd", {"distance_weight": 0, "angle_weight": 0}, "learns nothing with distance_weight 0 and angle_weight 0"),
        ("sskd", {"pretext_weight": 0, "transformed_weight": 0}, "learns nothing with transformed_weight 0 and"),
        ("sskd", {"pretext": "jigsaw", "transforms": "four"}, "gets transforms of its own from the pretext 'jigsaw'"),
        ("ft", {"share": 0.003}, "keeps a share of 0.003 of the 256 channels of resnet32x4, which is none"),
    ],
)
def test_hyperparameters_that_do_not_go_together(name, options, expected):
    (reason,) = incompatibilities("resnet8x4", "resnet32x4", terms(**{name: options}))
    assert reason.startswith(f"{name} {expected}")
    one_left = dict(list(options.items())[:1])
    assert incompatibilities("resnet8x4", "resnet32x4", terms(**{name: one_left})) == (
        [] if len(options) > 1 else [reason]
    )


def test_transformations_go_from_stage_to_stage():
    assert incompatibilities("resnet8x4", "clip-vit-b32", terms(irg=1)) == []
    (reason,) = incompatibilities("resnet8x4", "clip-vit-b32", terms(irg={"transformations": True}))
    assert reason.endswith("but clip-vit-b32 does not expose two stages")


def test_without_a_regressor_the_maps_must_be_equal():
    same = terms(fitnet={"layer": 2, "regressor": False})
    assert incompatibilities("resnet8x4", "resnet32x4", same) == []
    (reason,) = incompatibilities("resnet20", "resnet32x4", same)
    assert "32 channels at stride 2 in resnet20 and 128 at stride 2 in resnet32x4" in reason
    assert len(incompatibilities("resnet20", "resnet32x4", terms(fitnet={"layer": 9, "regressor": False}))) == 1


@pytest.mark.parametrize("method", ["at", "sp", "vid"])
def test_terms_that_read_maps_need_networks_that_have_some(method):
    (reason,) = incompatibilities("resnet8x4", "clip-vit-b32", terms(**{method: 1}))
    expected = "reads the stages' feature maps, but clip-vit-b32 exposes no feature maps, only its embedding"
    assert reason == f"{method} {expected}"
    assert incompatibilities("resnet8x4", "clip-rn101", terms(**{method: 1})) == []


def test_a_layer_of_a_network_without_maps():
    (reason,) = incompatibilities("resnet8x4", "clip-vit-b16", terms(fitnet={"layer": 2}))
    assert reason == "fitnet reads layer 2, but clip-vit-b16 exposes no feature maps, only its embedding"
    assert incompatibilities("resnet8x4", "clip-vit-b16", terms(ce=1, kd=1, rkd=1, pkt=1)) == []


def test_the_stems_map_alone_is_no_stage():
    net = replace(network("resnet8x4"), features=((32, 1),))
    assert feature_maps(net, net, {}) == "reads the stages' feature maps, but resnet8x4 exposes the stem's map alone"


def test_stages_that_are_paired_one_by_one():
    assert incompatibilities("resnet8x4", "wrn-40-2", terms(ce=1, ab=1)) == []
    (reason,) = incompatibilities("vgg8", "resnet32x4", terms(ce=1, ab=1))
    assert reason == "ab pairs the stages one by one, but vgg8 has 4 and resnet32x4 has 3"
    (reason,) = incompatibilities("resnet8", "clip-vit-b32", terms(ce=1, ab=1))
    assert "clip-vit-b32 exposes no feature maps" in reason


def test_how_far_abs_connectors_reach():
    assert incompatibilities("shufflenetv1", "resnet32x4", terms(ce=1, ab=1)) == []
    assert incompatibilities("mobilenetv2", "resnet50", terms(ce=1, ab=1)) == []
    (reason,) = incompatibilities("resnet18", "resnet50", terms(ce=1, ab=1))
    assert reason == (
        "ab can double the student's map but no more, and stage 1 of resnet18 is at 1/4 of the image's size, 32 "
        "pixels, that of resnet50 at 1/1"
    )


def test_equal_channels():
    assert incompatibilities("wrn-16-2", "wrn-40-2", terms(ce=1, fsp=1)) == []
    (reason,) = incompatibilities("wrn-40-1", "wrn-40-2", terms(ce=1, fsp=1))
    assert reason == "fsp needs equal channels, but wrn-40-1 has 16-16-32-64 and wrn-40-2 has 16-32-64-128"


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("vgg8", "resnet32x4", [(1, 2), (2, 3)]),
        ("resnet8x4", "resnet32x4", [(1, 1), (2, 2), (3, 3)]),
        ("mobilenetv2", "wrn-40-2", [(1, 2), (2, 3)]),
        ("shufflenetv1", "resnet32x4", []),
        ("shufflenetv1", "wrn-40-2", []),
    ],
)
def test_levels_that_match(student, teacher, pairs):
    stages = (network(name).features[1:] for name in (student, teacher))
    assert [(ours + 1, theirs + 1) for ours, theirs in matched_levels(*stages)] == pairs
    assert [
        f"{student} has none for {teacher}" in reason for reason in incompatibilities(student, teacher, terms(mgd=1))
    ] == ([] if pairs else [True])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"student_layer": 1, "teacher_layer": 3}, ""),
        ({"student_layer": 3, "teacher_layer": 1}, ""),
        ({"student_layer": 4, "teacher_layer": 1}, "reads student_layer 4, but resnet8x4 has the layers 1 to 3"),
        ({"teacher_layer": 4, "student_layer": 1}, "reads teacher_layer 4, but resnet32x4 has the layers 1 to 3"),
        ({"student_layer": 1}, "fixes student_layer but no teacher_layer: set both or neither"),
        ({"teacher_layer": 1}, "fixes teacher_layer but no student_layer: set both or neither"),
    ],
)
def test_a_fixed_pair_of_layers(options, reason):
    found = incompatibilities("resnet8x4", "resnet32x4", terms(semckd=options))
    assert found == ([f"semckd {reason}"] if reason else [])


@pytest.mark.parametrize("condition", ["last_norms", "last_stage_again"])
def test_the_parts_of_networks_from_elsewhere_are_not_known(condition):
    own = network("resnet8x4")
    other = replace(own, bundled=False)
    nets = {"last_norms": (own, other), "last_stage_again": (other, own)}[condition]
    assert "resnet8x4" in CONDITIONS[condition](*nets, {})
    assert CONDITIONS[condition](*nets[::-1], {}) is None


def test_all_reasons_are_given():
    uses = terms(fitnet={"layer": 9}, **{"kdbench.methods.fitnet:FitNet": {"layer": 8}})
    assert len(incompatibilities("resnet20", "resnet32x4", uses)) == 2


@pytest.mark.parametrize(
    ("method", "keys", "expected"),
    [
        ("{sskd: {pretext: jigsaw}}", {"dataset": "{name: cifar100, size: 33}"}, "a side of 33 pixels has no halves"),
        ("{sskd: {pretext: exemplar}}", {"scenario": "{fraction: 0.5}"}, "only a fraction of them is shown"),
        (
            "{ab: 1, ce: 1}",
            {"student": "shufflenetv2", "dataset": "{name: cifar100, size: 33}"},
            "can double the student",
        ),
    ],
)
def test_images_that_a_method_cannot_learn_from(grid, method, keys, expected):
    own = {"teacher": "resnet8", "method": f"{{name: own, terms: {method}}}"}
    with pytest.raises(BadSuite, match=expected) as caught:
        grid(**own, **keys)
    assert len(caught.value.problems) == 1
    assert grid(**own, student=keys.get("student", "resnet8")).runs
