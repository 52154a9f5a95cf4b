"""Ids: equal for everything that trains the same, different for everything that can change the result."""

import pytest

from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    NewLayers,
    Recipe,
    RunSpec,
    Scenario,
    Supervised,
    WeightedTerm,
    digest,
)


RECIPE = Recipe(epochs=240, batch=64, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=(150, 180, 210))
SPEC = RunSpec(
    student="resnet8x4",
    teacher=Supervised(network="resnet32x4", dataset=DatasetSpec(name="cifar100"), recipe=RECIPE),
    terms=(WeightedTerm(name="ce"), WeightedTerm(name="kd", weight=0.9)),
    dataset=DatasetSpec(name="cifar100"),
    recipe=RECIPE,
)
RECIPE_CHANGES = {
    "epochs": 241, "batch": 65, "lr": 0.06, "momentum": 0.8, "weight_decay": 0.0, "nesterov": True, "milestones": (150,),
    "decay": 0.2, "crop_padding": 4, "flip": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "precision": "bf16",
    "node_embedding": 256, "evaluate_every": 5, "size": 224, "batch_norm_parts": 8,
    "crop_area": (0.1, 1.0), "crop_ratio": (0.8, 1.25),
}  # fmt: skip


def changed(spec, **values):
    return spec.model_validate(spec.model_copy(update=values).model_dump())


def test_a_changed_copy_has_an_id_of_its_own():
    before = SPEC.id
    copy = SPEC.model_copy(update={"trial": 1})
    assert copy.id == changed(SPEC, trial=1).id != before
    assert SPEC.model_copy() == SPEC
    with pytest.raises(ValueError, match="RunSpec has no field parts"):
        SPEC.model_copy(update={"parts": ()})
    assert SPEC.model_copy().id == before


def ids(suite):
    return [run.id for run in suite.runs]


def test_literal_ids(load):
    # These ids are the names of the folders in everybody's results. If this test fails, every finished run is orphaned:
    # nothing that was trained so far will be found again. Change them only if the results themselves would change.
    text = """
protocol: {protocol}
dataset: cifar100
trials: 1
grid: {{teacher: resnet32x4, student: resnet8x4, method: {method}, strategy: {strategy}}}
"""
    settings = [
        ("crd", "ce", "pretrained"), ("crd", "kd", "pretrained"), ("semckd", "kd", "pretrained"),
        ("sskd", "fitnet", "pretrained"), ("ega", "rkd", "sequential"), ("ega", "rkd", "simultaneous"),
    ]  # fmt: skip
    found = [ids(load(text.format(protocol=p, method=m, strategy=s)))[0] for p, m, s in settings]
    assert found == LITERAL
    teacher = load(text.format(protocol="crd", method="kd", strategy="pretrained")).runs[0].spec.teacher
    assert teacher.id == LITERAL_TEACHER


LITERAL = ["60819f463a56", "90448c839134", "340eb89883f6", "8af588c1945a", "2da4687eda7e", "656aa92900bb"]
LITERAL_TEACHER = "102621cb6276"


@pytest.mark.parametrize(("precision", "versions"), [("fp32", (1, 1, 1)), ("bf16", (2, 1, 1))])
def test_what_changes_bf16_runs_alone_counts_in_their_ids_alone(load, precision, versions):
    suite = load(f"""
protocol: {{base: crd, precision: {precision}, methods: {{both: {{ce: 1, kd: 1, crd: 0.8}}}}}}
dataset: cifar100
grid: {{teacher: resnet32x4, student: resnet8x4, method: both}}
""")
    terms = {use.name: use.version for use in suite.runs[0].spec.terms}
    assert (terms["crd"], terms["kd"], terms["ce"]) == versions


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher": "ResNet32x4", "student": "resnet8X4"},
        {"dataset": "CIFAR-100"},
        {"dataset": "{name: cifar100, classes: 100}"},
        {"method": "[ce, {name: other, terms: {kd: 0.9, ce: 0.1}}]"},
        {"method": "[ce, {terms: {ce: 0.1, kd: {temperature: 4, weight: 0.9}}}]"},
        {"method": "[ce, {terms: {ce: 0.1, kd: {temperature: 4.0, weight: 0.9}, at: 0}}]"},
        {"method": "[{terms: {CE: 1.0}}, kd]"},
        {"protocol": "{base: crd, score: best, title: x}"},
        {"protocol": "{milestones: [150, 180, 210], base: crd, lr: 0.05, methods: {other: {ce: 1}}}"},
        {"protocol": "{base: crd, datasets: {digits: {lr: 1.0}}, lr_for: {vgg8: 0.1}}"},
        {"scenario": "{fraction: 1, label_noise: 0}"},
        {"strategy": "pretrained"},
    ],
)
def test_what_trains_the_same_has_the_same_id(grid, keys):
    assert ids(grid(**keys)) == ids(grid())


@pytest.mark.parametrize(
    "keys",
    [
        {"scenario": "{label_noise: 0.1}"},
        {"scenario": "{label_noise: 0.1, noise: all}"},
        {"scenario": "{label_noise: 0.1, noise: classes}"},
        {"dataset": "{name: cifar100, val_split: 0.1}"},
        {"dataset": "{name: cifar100, val_split: 0.2}"},
    ],
)
def test_what_trains_otherwise_has_another_id(grid, keys):
    assert not set(ids(grid(**keys))) & set(ids(grid()))


def test_noise_over_the_other_classes_is_what_it_always_was(grid):
    before = Scenario(label_noise=0.1)
    assert before.canonical() == {"label_noise": 0.1}
    assert ids(grid(scenario="{label_noise: 0.1, noise: other}")) == ids(grid(scenario="{label_noise: 0.1}"))
    assert DatasetSpec(name="cifar100", classes=10).canonical() == {"name": "cifar100", "classes": 10}


def test_teachers_of_a_validation_split_are_other_teachers_and_scenarios_change_none(grid):
    def teachers(**keys):
        return {run.spec.teacher.id for run in grid(method="kd", **keys).runs}

    assert teachers(scenario="[{fraction: 0.5}, {label_noise: 0.1, noise: all}]") == teachers()
    assert not teachers(dataset="{name: cifar100, val_split: 0.1}") & teachers()


def test_the_number_of_trials_changes_no_trial(grid):
    assert set(ids(grid(trials=1))) < set(ids(grid(trials=3)))


def test_the_order_of_keys_grids_and_suites_and_the_file_change_nothing(load, tmp_path):
    first = "{teacher: vgg13, student: vgg8, method: [ce, kd]}"
    second = "{method: [at], student: vgg8, teacher: vgg13}"
    one = load(f"protocol: crd\ndataset: cifar100\ngrid: [{first}, {second}]")
    other = load(f"name: x\ngrid: [{second}, {first}]\ndataset: cifar100\nprotocol: crd")
    assert set(ids(one)) == set(ids(other))


def test_the_plain_student_is_one_run_whatever_the_teacher_and_strategy(load):
    suite = load("""
protocol: ega
dataset: cifar100
trials: 1
grid:
  - {teacher: [vgg13, resnet32x4], student: vgg8, method: ce, strategy: [pretrained, sequential, simultaneous]}
  - {student: vgg8, method: ce}
""")
    assert len(suite.runs) == 7
    assert len(suite.specs) == 1


def test_the_recipe_has_no_field_that_is_not_tested():
    assert RECIPE_CHANGES.keys() == Recipe.model_fields.keys()


def test_random_parts_are_those_of_images_that_stay_files(load):
    grid = "grid: {student: resnet18, method: ce}"
    for dataset, same in (("cifar100", True), ("imagenet", False)):
        plain, other = (
            ids(load(f"protocol: {{base: semckd-imagenet{changes}}}\ndataset: {dataset}\n{grid}"))
            for changes in ("", ", crop_area: [0.1, 1], crop_ratio: [0.8, 1.25]")
        )
        assert (plain == other) is same


@pytest.mark.parametrize(("field", "value"), RECIPE_CHANGES.items())
def test_every_field_of_a_recipe_changes_the_ids(field, value):
    recipe = changed(RECIPE, **{field: value})
    teacher = changed(SPEC.teacher, recipe=recipe)
    head = HeadSpec(width=8, recipe=RECIPE)
    assert changed(SPEC, recipe=recipe).id != SPEC.id
    assert teacher.id != SPEC.teacher.id
    assert changed(SPEC, teacher=teacher).id != SPEC.id
    assert changed(SPEC, head=head).id != changed(SPEC, head=changed(head, recipe=recipe)).id


@pytest.mark.parametrize(
    "values",
    [
        {"student": "vgg8"},
        {"teacher": None},
        {"teacher": changed(SPEC.teacher, network="vgg13")},
        {"teacher": changed(SPEC.teacher, checkpoint="best")},
        {"teacher": NewLayers(parent=SPEC.teacher, dataset=SPEC.dataset, head=HeadSpec(width=256, recipe=RECIPE))},
        {"teacher": changed(SPEC.teacher, dataset=DatasetSpec(name="cifar10"))},
        {"head": HeadSpec(width=256, recipe=RECIPE)},
        {"head": HeadSpec(width=128, recipe=RECIPE)},
        {"dataset": DatasetSpec(name="cifar10")},
        {"dataset": DatasetSpec(name="cifar100", classes=20)},
        {"dataset": DatasetSpec(name="cifar100", train_per_class=20)},
        {"dataset": DatasetSpec(name="cifar100", test_per_class=20)},
        {"scenario": Scenario(fraction=0.5)},
        {"scenario": Scenario(label_noise=0.5)},
        {"trial": 1},
        {"terms": (WeightedTerm(name="ce"),)},
        {"terms": (WeightedTerm(name="ce"), WeightedTerm(name="kd", weight=0.8))},
        {"terms": (WeightedTerm(name="ce"), WeightedTerm(name="kd", weight=0.9, hyperparameters={"temperature": 2.0}))},
        {"terms": (WeightedTerm(name="ce"), WeightedTerm(name="kd", weight=0.9, version=2))},
        {"terms": (WeightedTerm(name="ce"), WeightedTerm(name="kd", weight=0.9, source_sha256="a" * 64))},
    ],
)
def test_what_can_change_the_result_changes_the_id(values):
    assert changed(SPEC, **values).id != SPEC.id


def test_all_these_ids_differ(grid):
    variants = [
        {}, {"protocol": "sskd"}, {"protocol": "{base: crd, teacher: {epochs: 100}}"}, {"scenario": "{fraction: 0.25}"},
        {"protocol": "{base: crd, teacher_checkpoint: best}"}, {"protocol": "{base: crd, datasets: {cifar100: {lr: 0.1}}}"},
        {"protocol": "{base: crd, lr_for: {resnet32x4: 0.01}}"}, {"dataset": "{name: cifar100, classes: 99}"},
    ]  # fmt: skip
    found = [run.id for keys in variants for run in grid(method="kd", **keys).runs]
    assert len(set(found)) == len(variants)


def test_a_number_is_one_number():
    assert WeightedTerm(name="kd", weight=1).id == WeightedTerm(name="kd", weight=1.0).id
    assert len(SPEC.id) == 12
    assert int(SPEC.id, 16) >= 0


def test_stored_specs_keep_their_id():
    assert RunSpec.model_validate(SPEC.canonical()).id == SPEC.id


def test_streams():
    stream = SPEC.stream_id
    same = [
        {"student": "vgg8"}, {"teacher": None}, {"terms": (WeightedTerm(name="at"),)},
        {"head": HeadSpec(width=8, recipe=RECIPE)},
        {"recipe": changed(RECIPE, lr=0.1, epochs=3, milestones=(), momentum=0.0, precision="bf16")},
    ]  # fmt: skip
    other = [
        {"trial": 1}, {"scenario": Scenario(fraction=0.5)}, {"scenario": Scenario(label_noise=0.1)},
        {"dataset": DatasetSpec(name="cifar10")}, {"dataset": DatasetSpec(name="cifar100", train_per_class=9)},
        *({"recipe": changed(RECIPE, **{k: RECIPE_CHANGES[k]})} for k in ("batch", "crop_padding", "flip", "mean", "std")),
    ]  # fmt: skip
    assert {changed(SPEC, **values).stream_id for values in same} == {stream}
    assert len({changed(SPEC, **values).stream_id for values in other} | {stream}) == len(other) + 1


def test_the_ids_of_trials_are_those_of_their_specs():
    for run in load_suite(bundled_suites()["smoke"], trials=3).runs:
        assert run.id == digest(run.spec.canonical())
        assert run.spec.model_copy(update={"trial": 1}).id == digest({**run.spec.canonical(), "trial": 1})


def test_every_spec_of_every_kind_can_be_a_key():
    suite = load_suite(bundled_suites()["smoke"])
    for spec in suite.specs.values():
        for part in (spec, *spec.stages, *spec.dependencies, *spec.terms, spec.recipe, spec.dataset, spec.scenario):
            assert {part: "found"}[part.model_copy()] == "found"
