"""Tiny counterparts: the same grid, other runs, no data and no weights."""

import pytest
from pydantic import ValidationError

from kdbench.planning.plan import make_plan, missing_files
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suites
from kdbench.suite.measurements import measurement_from
from kdbench.suite.specs import DatasetSpec, RunSpec
from kdbench.suite.suite import TINY


SUITES = list(bundled_suites())


@pytest.fixture(scope="module")
def loaded():
    """All bundled suites as they are, with one trial, and tiny."""
    return list(zip(load_suites(SUITES, 1), load_suites(SUITES, tiny=True), strict=True))


def test_grids_and_tables_stay(loaded):
    for own, tiny in loaded:
        assert [run.original for run in tiny.runs] == list(own.runs)
        assert tiny.tables == own.tables
        for run, small in zip(own.runs, tiny.runs, strict=True):
            assert (small.method, small.teacher, small.strategy) == (run.method, run.teacher, run.strategy)
            assert (small.spec.student, small.spec.scenario) == (run.spec.student, run.spec.scenario)
            assert [term.name for term in small.spec.terms] == [term.name for term in run.spec.terms]
        assert len(tiny.measurements) == len(own.measurements)


def test_a_tiny_run_is_so_small(loaded):
    """EGA's first run: 224 pixels for CLIP, 16 for the student, eight images in one batch."""
    tiny = next(small for own, small in loaded if own.name == "ega_simultaneous")
    spec = next(run.spec for run in tiny.runs if (run.method, run.teacher) == ("ega", "clip-vit-b32"))
    recipe = {key: getattr(spec.recipe, key) for key in ("epochs", "batch", "lr", "momentum", "milestones", "size")}
    assert recipe == {"epochs": 1, "batch": 8, "lr": 5e-7, "momentum": 0.0, "milestones": (), "size": None}
    assert spec.teacher_view.size == 224
    assert spec.dataset == DatasetSpec(
        name="cifar100", classes=8, train_per_class=1, test_per_class=1, size=16, stand_in=True
    )


def test_a_tiny_data_set_has_eight_classes_or_its_own_and_batch_norm_at_most_two_parts(loaded):
    specs = [spec for _, tiny in loaded for spec in tiny.specs.values()]
    classes = {(spec.dataset.name, spec.dataset.classes, spec.dataset.class_count) for spec in specs}
    assert ("cifar100", 8, 8) in classes
    assert all(count == 8 for _, _, count in classes)
    assert {spec.recipe.batch_norm_parts for spec in specs} == {1, 2}


def test_no_two_runs_become_one(loaded):
    """Among these are EGA's graphs of 16 to 256 images."""
    for own, tiny in loaded:
        assert len(tiny.specs) == len(own.specs)
        spec = {each.spec.id for each in own.measurements}
        assert len({each.spec.id for each in tiny.measurements}) == len(spec)


def test_tiny_runs_are_other_runs_and_never_published(loaded):
    every = {id for own, _ in loaded for id in own.specs}
    for _, tiny in loaded:
        assert not every & tiny.specs.keys()
        for run in tiny.runs:
            assert run.protocol.name.startswith(TINY)
            assert not run.protocol.as_published(run.method, run.spec.terms)


def test_specs_survive_the_way_to_a_worker(loaded):
    for spec in {id: spec for _, tiny in loaded for id, spec in tiny.specs.items()}.values():
        assert RunSpec.model_validate(spec.canonical()).id == spec.id
    for each in {each.spec.id: each for _, tiny in loaded for each in tiny.measurements}.values():
        assert measurement_from(each.spec.canonical()).id == each.spec.id


def test_every_run_takes_a_full_batch(loaded):
    """The smallest fraction keeps one image of each class."""
    for _, tiny in loaded:
        for run in tiny.runs:
            assert 2 <= run.spec.recipe.batch <= run.spec.dataset.class_count
            assert run.spec.recipe.epochs == 1


def test_no_file_is_needed(loaded, tmp_path):
    suites = [tiny for _, tiny in loaded]
    specs = [spec for suite in suites for spec in suite.specs.values()]
    measured = [each.spec for suite in suites for each in suite.measurements]
    plan = make_plan(specs, Store(tmp_path / "results"), measurements=measured)
    assert not missing_files(plan, tmp_path / "data")
    assert not any(suite.weight_files for suite in suites)


def test_networks_of_one_size_keep_it_and_others_see_small_images(loaded):
    tiny = {suite.name: suite for _, suite in loaded}
    assert {run.spec.teacher_view.size for run in tiny["ega_weights"].runs if run.spec.teacher_view} == {224}
    assert {run.spec.teacher_view.size for run in tiny["ega_supervised"].runs if run.spec.teacher_view} <= {None, 48}
    assert {run.spec.dataset.image_size for run in tiny["semckd_imagenet"].runs} == {48}
    assert {run.spec.dataset.image_size for run in tiny["crd_similar"].runs} == {16}


def test_ten_digits_stand_in_for_ten_classes():
    with pytest.raises(ValidationError, match="ten classes"):
        DatasetSpec(name="cifar100", stand_in=True)
    assert "stand_in" not in DatasetSpec(name="cifar100").canonical()


def test_suites_cannot_ask_for_a_stand_in(tmp_path):
    from kdbench.errors import BadSuite

    file = tmp_path / "own.yaml"
    file.write_text("protocol: crd\ndataset: {name: stl10, stand_in: true}\ngrid: [{student: vgg8, method: ce}]\n")
    with pytest.raises(BadSuite, match="stand_in"):
        load_suites([str(file)])
