"""What a suite has measured: on which networks, how, and what cannot be."""

import pytest

from kdbench.errors import BadSuite
from kdbench.suite.measurements import ProbeProtocol, name_of, named_probe, probe, probe_protocols, view_of
from kdbench.suite.selection import select
from kdbench.suite.specs import DatasetSpec, Imported, Recipe, StudentOf, Supervised, Weights


TEACHER = Supervised(network="resnet8", dataset=DatasetSpec(name="cifar100"), recipe=Recipe(epochs=1, batch=16, lr=0.1))


def test_each_student_and_each_teacher_is_probed(grid):
    suite = grid(measure="{probe: [stl10, tinyimagenet]}", trials=2)
    found = [(m.of, m.run.method, m.spec.dataset.name) for m in suite.measurements]
    assert len(found) == 2 * 2 * 2 * 2  # methods, trials, data sets, student and teacher
    assert len({m.spec.id for m in suite.measurements}) == 2 * 2 * 2 + 2
    assert all(m.spec.dataset.size == 32 for m in suite.measurements)
    assert {m.spec.recipe.epochs for m in suite.measurements} == {100}


def test_a_student_is_compared_with_the_teacher_of_its_column(grid):
    suite = grid(teacher="[resnet32x4, resnet110]", measure="{similarity: [cifar100, svhn]}")
    pairs = {(m.run.teacher, m.run.method, m.spec.teacher.network) for m in suite.measurements}
    assert pairs == {(t, m, t) for t in ("resnet32x4", "resnet110") for m in ("ce", "kd")}
    assert all(m.spec.dependencies == (m.spec.source, m.spec.teacher) for m in suite.measurements)


def test_layers_that_learned_beside_the_student_are_the_run_s(grid):
    suite = grid(protocol="ega", strategy="simultaneous", teacher="wrn-40-2", measure="{similarity: cifar100}")
    assert [(m.run.method, m.spec.teacher) for m in suite.measurements] == [("kd", None)]
    (each,) = suite.measurements
    assert each.spec.dependencies == (each.spec.source, each.run.spec.teacher)


def test_large_images_are_resized_batch_by_batch(grid):
    (one, *_) = grid(dataset="stl10", measure="{probe: cifar100}").measurements
    assert (one.spec.dataset.size, one.spec.recipe.size) == (None, 96)


def test_an_auxiliary_s_student_has_no_teacher_to_be_compared_with_where_that_one_learns(grid):
    changes = {"teacher": "resnet32x4", "method": "[hkd]", "measure": "{similarity: cifar100}"}
    protocol = "{base: semckd, node_embedding: 256}"
    assert grid(protocol=protocol, strategy="simultaneous", **changes).measurements == ()
    assert len(grid(protocol=protocol, strategy="sequential", **changes).measurements) == 1


def test_the_way_to_probe_can_be_named_and_changed(grid):
    suite = grid(measure="{probe: stl10, probe_protocol: {base: semckd, epochs: 3, milestones: [2]}}")
    recipe = suite.measurements[0].spec.recipe
    assert (recipe.epochs, recipe.lr, recipe.crop_padding) == (3, 0.05, 4)
    assert suite.measurements[0].spec.batch_norm == "batch"


def test_runs_are_the_same_with_and_without(grid):
    assert list(grid(measure="{probe: stl10}").specs) == list(grid().specs)


def test_only_what_is_left_is_measured(grid):
    (suite,) = select([grid(measure="{similarity: svhn}")], ["method=kd"])
    assert {m.run.method for m in suite.measurements} == {"kd"}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("{probes: stl10}", "Did you mean 'probe'?"),
        ("{probe: stl11}", "Did you mean 'stl10'?"),
        ("{probe: imagenet}", "stay files"),
        ("{probe: {name: stl10, classes: 11}}", "only 10 classes"),
        ("{probe: {name: imagenet, size: 32}}", "resized"),
        ("{probe: stl10, probe_protocol: linaer}", "Name one of linear, semckd"),
        ("{probe: stl10, probe_protocol: {base: linear, epocs: 3}}", "Did you mean 'epochs'?"),
        ("{probe: stl10, probe_protocol: {base: linear, size: 3}}", "comes from the network that is probed"),
        (
            "{probe: stl10, probe_protocol: {base: linear, batch_norm_parts: 2}}",
            "'batch_norm_parts' divides a batch where batch norms train, and under batch_norm: frozen none does",
        ),
        ("{probe: {name: stl10, size: 64}}", "leave it out"),
        ("stl10", "must be a mapping"),
    ],
)
def test_mistakes(grid, measure, message):
    with pytest.raises(BadSuite) as caught:
        grid(measure=measure)
    text = "\n".join(map(str, caught.value.problems))
    assert message in text
    assert "measure" in text


def test_a_renamed_suite_s_measurements_are_its_own(grid):
    suite = grid(measure="{probe: stl10}").renamed("other")
    assert {m.run.suite for m in suite.measurements} == {run.suite for run in suite.runs} == {suite.name} == {"other"}


@pytest.mark.parametrize(
    ("changes", "fixed"),
    [({}, True), ({"batch_norm": "batch"}, False), ({"crop_padding": 4}, False), ({"flip": True}, False)],
)
def test_features_are_fixed_where_each_epoch_sees_the_same_images(changes, fixed):
    how = ProbeProtocol.model_validate(named_probe({"base": "linear", **changes}))
    assert probe(TEACHER, DatasetSpec(name="stl10"), how).fixed_features == fixed


def test_a_network_is_probed_as_it_was_trained():
    how = probe_protocols()["linear"]
    cifar, stl10 = TEACHER.dataset.facts, probe(TEACHER, DatasetSpec(name="stl10"), how)
    assert (stl10.dataset.size, stl10.recipe.size) == (32, None), "smaller images stay smaller in memory"
    assert (stl10.recipe.mean, stl10.recipe.std) == (cifar.mean, cifar.std)
    assert (probe(TEACHER, DatasetSpec(name="svhn"), how).dataset.size) is None
    encoder = Imported(network="clip-vit-b32", weights=Weights(source="openai", classifier=False))
    with pytest.raises(ValueError, match="was trained on no data set"):
        view_of(encoder)


def test_networks_in_a_few_words(grid):
    plain, taught = grid().runs
    assert name_of(StudentOf(run=plain.spec)) == f"resnet8x4 (run {plain.id}, trial 0)"
    assert name_of(StudentOf(run=taught.spec)) == f"resnet8x4 of resnet32x4 (run {taught.id}, trial 0)"
    assert name_of(TEACHER) == "resnet8 on cifar100"
