"""Methods that put a wider student between the teacher and the student."""

import pytest

from kdbench.catalogue.networks import networks
from kdbench.errors import BadSuite
from kdbench.suite.methods import formula
from kdbench.suite.specs import RunSpec, Scenario, lineage, stage_label, trained_stages


@pytest.fixture
def spec(grid):
    """The only run's spec under SemCKD's protocol."""
    return lambda **keys: grid(**{"protocol": "semckd", "method": "hkd", **keys}).runs[0].spec


def test_a_doubled_student_is_trained_first_and_teaches(spec):
    run = spec(student="mobilenetv2", teacher="wrn-40-2", trials=1)
    between = run.teacher.run
    assert (run.teacher.network, between.student) == ("mobilenetv2-1.0", "mobilenetv2-1.0")
    assert formula(run.terms) == "1·ce + 1·hkd + 1·kd"
    assert formula(between.terms) == "1·ce + 1·kd + 30000·pkt"
    assert between.teacher == spec(student="mobilenetv2", teacher="wrn-40-2", method="kd").teacher
    assert (run.recipe.lr, between.recipe.lr) == (0.01, 0.05)  # the exceptions name networks, not their kin
    assert (run.checkpoint, between.checkpoint) == ("last", "best")
    assert (trained_stages(run.teacher), lineage(run.teacher)) == ([], [run.teacher])
    assert run.teacher.has_classifier
    assert stage_label(run.teacher) == "mobilenetv2-1.0 (a run's student) on cifar100"
    assert RunSpec.model_validate(run.canonical()).id == run.id


def test_the_auxiliary_has_the_runs_scenario_and_trial(grid):
    runs = grid(protocol="semckd", method="hkd", scenario="[{label_noise: 0.25}, {fraction: 0.5}]", trials=2).runs
    assert [(run.spec.scenario, run.spec.trial) for run in runs] == [
        (run.spec.teacher.run.scenario, run.spec.teacher.run.trial) for run in runs
    ]
    assert {run.spec.scenario for run in runs} == {Scenario(label_noise=0.25), Scenario(fraction=0.5)}
    assert len({run.spec.teacher.run.id for run in runs}) == 4


def test_the_auxiliary_has_the_runs_strategy(spec):
    run = spec(strategy="sequential", protocol="{base: semckd, node_embedding: 256}", teacher="vgg13")
    between = run.teacher.run
    assert between.teacher.head.width == between.recipe.node_embedding == run.recipe.node_embedding == 256
    run = spec(strategy="simultaneous", protocol="{base: semckd, node_embedding: 256}", teacher="vgg13")
    assert (run.head, run.teacher.run.head.width) == (None, 256)


def test_every_auxiliary_is_a_network_with_as_many_stages():
    known = {net.name: net.auxiliary for net in networks().values() if net.auxiliary}
    assert known.keys() >= {"resnet8x4", "wrn-16-2", "vgg8", "vgg13", "mobilenetv2", "shufflenetv2"}
    for name, wider in known.items():
        ours, theirs = networks()[name].features, networks()[wider].features
        assert [stride for _, stride in ours] == [stride for _, stride in theirs]
        assert all(c <= d for (c, _), (d, _) in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"student": "resnet20"},
            "method 'hkd' cannot train resnet20 with resnet32x4: it needs a network of twice the student's channels, "
            "and no doubled resnet20 is known. Exclude the pair or change the method.",
        ),
        ({"student": "resnet56"}, "no doubled resnet56 is known"),
        ({"method": "{name: x, terms: {hkd: 1, ce: 1}}", "teacher": "clip-vit-b32"}, "clip-vit-b32 has no classifier"),
    ],
)
def test_what_has_no_auxiliary(spec, keys, message):
    with pytest.raises(BadSuite) as error:
        spec(**keys)
    assert message in str(error.value)


def test_a_protocol_without_the_method_that_trains_the_auxiliary(spec, monkeypatch):
    monkeypatch.setattr("kdbench.suite.grid.auxiliary_method", lambda terms: "other")
    with pytest.raises(BadSuite) as error:
        spec()
    assert "it trains resnet8x4-double first, by the method 'other', which protocol 'semckd' lacks" in str(error.value)


def test_which_weights_a_run_keeps_is_part_of_it(spec):
    run = spec(method="kd")
    assert run.model_copy(update={"checkpoint": "best"}).id != run.id
