"""Conditions that terms put on pairs of networks."""

import pytest

from kdbench.catalogue.terms import term, term_names
from kdbench.suite.feasibility import CONDITIONS, infeasible
from kdbench.suite.methods import parse_terms


def terms(**values):
    def fail(path, message):
        raise AssertionError((path, message))

    return parse_terms(values, fail)


@pytest.mark.parametrize("name", term_names())
def test_every_condition_of_a_term_exists(name):
    assert set(term(name).requires) <= CONDITIONS.keys()


def test_methods_without_conditions_are_always_possible():
    assert infeasible("resnet8", "vgg13", terms(ce=1, kd=1, at=1, sp=1, vid=1, rkd=1, pkt=1)) == []


def test_the_layer_must_exist_in_both_networks():
    assert infeasible("resnet8x4", "vgg13", terms(fitnet={"layer": 3})) == []
    (reason,) = infeasible("resnet8x4", "vgg13", terms(fitnet={"layer": 4}))
    assert reason == "fitnet reads layer 4, but resnet8x4 has the layers 0 to 3"
    (reason,) = infeasible("vgg8", "resnet32x4", terms(fitnet={"layer": 4}))
    assert "resnet32x4 has the layers 0 to 3" in reason
    assert infeasible("vgg8", "vgg13", terms(fitnet={"layer": -1}))


def test_without_a_regressor_the_maps_must_be_equal():
    same = terms(fitnet={"layer": 2, "regressor": False})
    assert infeasible("resnet8x4", "resnet32x4", same) == []
    (reason,) = infeasible("resnet20", "resnet32x4", same)
    assert "32 channels at stride 2 in resnet20 and 128 at stride 2 in resnet32x4" in reason
    assert len(infeasible("resnet20", "resnet32x4", terms(fitnet={"layer": 9, "regressor": False}))) == 1


def test_all_reasons_are_given():
    uses = terms(fitnet={"layer": 9}, **{"kdbench.methods.fitnet:FitNet": {"layer": 8}})
    assert len(infeasible("resnet20", "resnet32x4", uses)) == 2
