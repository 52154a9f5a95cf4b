"""Parts of a teacher in suites: their recipes, what tells them apart, and what is refused."""

import pytest

from kdbench.catalogue.terms import term
from kdbench.errors import BadSuite
from kdbench.suite.methods import formula
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import DatasetSpec, lineage


def parts(suite):
    return [part for run in suite.runs for part in run.spec.adapters]


@pytest.mark.parametrize("protocol", ["crd", "sskd"])
@pytest.mark.parametrize(
    ("student", "rate"),
    [("resnet8x4", 0.01), ("wrn-16-2", 0.01), ("resnet20", 0.01), ("vgg8", 0.05), ("mobilenetv2", 0.01)],
)
def test_the_recipe_of_the_paraphraser_depends_on_the_student(grid, protocol, student, rate):
    (part,) = parts(grid(protocol=protocol, student=student, method="ft"))
    recipe = part.recipe
    assert (recipe.epochs, recipe.milestones, recipe.batch) == (30, (), 64)
    assert {recipe.lr_at(epoch) for epoch in (1, 30)} == {rate}
    assert (recipe.momentum, recipe.weight_decay, recipe.crop_padding, recipe.flip) == (0.9, 5e-4, 4, True)
    assert recipe.mean == bundled_protocol(protocol).recipe("vgg8", DatasetSpec(name="cifar100")).mean


def test_students_of_one_rate_share_the_part_and_trials_do_too(grid):
    found = parts(grid(student="[resnet8x4, wrn-16-2, vgg8]", method="[kd, ft]", trials=3))
    assert len(found) == 9
    assert len({part.id for part in found}) == 2


def test_the_part_holds_what_it_depends_on_and_no_more(grid):
    plain, narrow = parts(grid(method="[ft, {name: narrow, terms: {ce: 1, ft: {weight: 50, share: 0.25}}}]"))
    assert (plain.hyperparameters, narrow.hyperparameters) == ({}, {"share": 0.25})
    assert plain.parent == narrow.parent == grid(method="kd").runs[0].spec.teacher
    heavy = parts(grid(method="{name: heavy, terms: {ce: 1, ft: 50}}"))
    assert [part.id for part in heavy] == [plain.id]


def test_other_methods_have_none(grid):
    assert parts(grid(method="[ce, kd, at, crd]")) == []


def test_few_labels_and_wrong_ones_leave_the_part_alone(grid):
    scenes = "[{fraction: 0.25}, {label_noise: 0.3}]"
    found = parts(grid(method="ft", scenario=scenes))
    assert {part.id for part in found} == {part.id for part in parts(grid(method="ft"))}


def test_a_protocol_may_change_single_values_of_a_part(grid):
    suite = grid(method="ft", protocol="{base: crd, parts: {ft: {epochs: 7}}}")
    recipe = parts(suite)[0].recipe
    assert (recipe.epochs, recipe.lr) == (7, 0.01)
    assert suite.runs[0].protocol.name == "crd* (parts.ft.epochs 7)"


def test_a_part_under_a_frozen_head_is_trained_on_both(grid):
    (part,) = parts(grid(method="ft", protocol="{base: crd, node_embedding: 32}", strategy="sequential"))
    assert [stage.kind for stage in lineage(part)] == ["supervised", "new_layers", "adapter"]
    assert part.recipe.node_embedding is None


def test_a_part_of_a_published_teacher_sees_the_images_as_the_teacher_does(grid):
    protocol = "{base: crd, node_embedding: 32}"
    (part,) = parts(grid(method="ft", teacher="clip-rn101", protocol=protocol, strategy="sequential"))
    assert part.recipe.size == 224
    assert [stage.kind for stage in lineage(part)] == ["imported", "new_layers", "adapter"]
    assert [stage.dataset is None for stage in lineage(part)] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "{base: crd, node_embedding: 8}", "strategy": "simultaneous"}, "ft first trains a part"),
        ({"protocol": "{base: crd, parts: {kd: {epochs: 3}}}"}, "the term 'kd' trains nothing on the teacher first"),
        ({"protocol": "{base: crd, parts: {fit: {epochs: 3}}}"}, "unknown term 'fit'"),
        ({"protocol": "{base: crd, parts: {ft: {epoch: 3}}}"}, "Did you mean 'epochs'"),
        ({"protocol": "{base: crd, parts: {ft: {epochs: x}}}"}, "must be a whole number"),
        ({"protocol": "{base: crd, parts: {ft: {nesterov: true, momentum: 0.0}}}"}, "nesterov needs a momentum"),
        ({"protocol": "{base: crd, parts: {ft: {lr_for: {vgg8: fast}}}}"}, "must be a number above 0"),
        ({"protocol": "{base: crd, parts: {ft: {lr_for: {'vgh*': 0.1}}}}"}, r"no network is called 'vgh\*'"),
        ({"protocol": "{base: crd, parts: {ft: {lr_for: 0.1}}}"}, "must be a mapping of students to rates"),
    ],
)
def test_what_is_refused(grid, changes, message):
    with pytest.raises(BadSuite, match=message):
        grid(method="ft", **changes)


@pytest.mark.parametrize("place", ["head", "head_simultaneous", "parts.ft"])
@pytest.mark.parametrize("value", [1, 2, 0, "x"])
def test_batch_norm_parts_are_refused_where_no_batch_norm_trains(grid, place, value):
    section = f"{place.replace('.', ': {')}: {{batch_norm_parts: {value}}}{'}' * place.count('.')}"
    with pytest.raises(BadSuite) as caught:
        grid(method="ft", protocol=f"{{base: crd, {section}}}")
    (problem,) = caught.value.problems
    assert problem.path == f"grid[0].protocol.{place}.batch_norm_parts"
    assert problem.message == (
        "'batch_norm_parts' divides a batch where a network's batch norms train, and here none does: leave it out"
    )


def test_the_weights_of_ft():
    assert formula(bundled_protocol("crd").terms["ft"]) == "1·ce + 200·ft"
    assert formula(bundled_protocol("sskd").terms["ft"]) == "0.1·ce + 200·ft + 0.9·kd"


@pytest.mark.parametrize("student", ["resnet8x4", "vgg8", "mobilenetv2"])
def test_the_recipe_of_sskds_head_is_the_same_for_every_student(grid, student):
    (part,) = parts(grid(protocol="sskd", student=student, method="sskd"))
    recipe = part.recipe
    rates = {epoch: recipe.lr_at(epoch) for epoch in (1, 30, 31, 45, 46, 60)}
    assert rates == pytest.approx({1: 0.05, 30: 0.05, 31: 5e-3, 45: 5e-3, 46: 5e-4, 60: 5e-4})
    assert (recipe.epochs, recipe.batch, recipe.momentum, recipe.weight_decay) == (60, 64, 0.9, 5e-4)
    assert part.parent.checkpoint == "best"


def test_the_weights_of_sskd():
    terms = bundled_protocol("sskd").terms["sskd"]
    assert formula(terms) == "0.1·ce + 0.9·kd + 1·sskd"
    defaults = {key: value.default for key, value in term("sskd").hyperparameters.items()}
    assert (defaults["transformed_weight"], defaults["pretext_weight"]) == (2.7, 10.0)
    assert (defaults["kept_transformed"], defaults["kept_pretext"]) == (1.0, 0.75)
    assert (defaults["temperature"], defaults["pretext_temperature"]) == (4.0, 0.5)


def test_tasks_have_parts_of_their_own_and_weights_have_not(grid):
    options = ["transforms: four", "pretext: jigsaw", "pretext_weight: 0", "kept_pretext: 0.5"]
    methods = ", ".join(f"{{name: m{n}, terms: {{ce: 1, sskd: {{{text}}}}}}}" for n, text in enumerate(options))
    found = parts(grid(protocol="sskd", method=f"[sskd, {methods}]"))
    assert len(found) == 5
    assert len({part.id for part in found}) == 3


def test_a_method_with_an_auxiliary_has_its_part_trained_on_that(grid):
    method = "{name: hkd+ft, terms: {ce: 1, hkd: 1, ft: 200}}"
    suite = grid(protocol="semckd", student="wrn-16-2", method=method)
    (part,) = parts(suite)
    assert part.parent == suite.runs[0].spec.teacher
    assert part.parent.source_run is not None
    assert part.source_run is None
