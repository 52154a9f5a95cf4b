"""A finished run's student as a teacher: by the run's id, under each strategy, as it was trained to see the images."""

import pytest

from kdbench.errors import BadInput, BadSuite
from kdbench.suite.load import load_suite
from kdbench.suite.specs import NewLayers, StudentOf, teaching_run


SUITE = """
protocol: {protocol}
dataset: {dataset}
trials: 1
teachers: {{small: {{run: 3fa2c81b}}}}
grid: {{teacher: small, student: resnet8x4, method: {method}, strategy: {strategy}}}
"""


@pytest.fixture
def spec(grid, tmp_path):
    """The spec of a run that a student of CRD's on CIFAR-100 teaches."""
    taught = grid(student="wrn-16-2", method="kd").runs[0].spec

    def tell(document):
        document.run = {"3fa2c81b": taught.canonical()}.__getitem__

    def make(strategy="pretrained", protocol="{base: crd, node_embedding: 64}", dataset="cifar100", method="kd"):
        file = tmp_path / "second.yaml"
        file.write_text(SUITE.format(strategy=strategy, protocol=protocol, dataset=dataset, method=method))
        return load_suite(file, known=tell).runs[0].spec

    make.taught = taught
    return make


@pytest.mark.parametrize("strategy", ["pretrained", "sequential", "simultaneous"])
def test_it_teaches_under_each_strategy(spec, strategy):
    run, student = spec(strategy), StudentOf(run=spec.taught)
    assert isinstance(run.teacher, NewLayers) == (strategy == "sequential")
    assert (run.teacher.parent if strategy == "sequential" else run.teacher) == student
    assert (run.head is not None) == (strategy == "simultaneous")
    assert teaching_run(run.teacher).id == spec.taught.id
    assert type(run).model_validate(run.canonical()).id == run.id


def test_its_identity_is_the_runs(spec):
    assert spec().teacher.id == StudentOf(run=spec.taught).id
    assert spec().teacher.source_run.id == spec.taught.id


def test_it_sees_the_images_as_it_was_trained_to(spec):
    assert spec().teacher_view is None
    assert not spec().teacher_seen_elsewhere
    other = spec(protocol="{base: crd, datasets: {cifar100: {mean: [0.5, 0.5, 0.5]}}}")
    assert (other.teacher_view.size, other.teacher_view.mean) == (32, spec.taught.recipe.mean)
    assert not other.teacher_seen_elsewhere
    larger = spec("sequential", dataset="tinyimagenet")
    assert (larger.teacher_view.size, larger.teacher_view.mean) == (32, spec.taught.recipe.mean)
    assert spec(dataset="{name: cifar100, test_per_class: 10}").teacher_seen_elsewhere


def test_it_can_teach_an_auxiliary(spec):
    run = spec(protocol="semckd", method="hkd").teacher.run
    assert run.teacher == StudentOf(run=spec.taught)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "digits"},
            "small tells the 100 classes of cifar100 apart, and digits has 10: use strategy sequential or simultaneous",
        ),
        ({"dataset": "{name: cifar100, val_split: 0.1}"}, "perhaps on the images that val_split holds out"),
        ({"method": "ega"}, "compares the embeddings themselves"),
    ],
)
def test_what_it_cannot_teach(spec, changes, message):
    with pytest.raises(BadSuite) as error:
        spec(**{"protocol": "ega"} | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{run: 3fa2c81b}", "teachers.small.run: run 3fa2c81b is looked for in a results folder, and none is named"),
        ("{run: 3fa2c81b, network: resnet8}", "teachers.small: a run's student teaches as it is: leave out all keys"),
        ("{run: 34567890}", "teachers.small.run: must be a name, not 34567890 (put it in quotes)"),
        ("{weights: random}", "teachers.small: 'network' is missing (or 'run', the id of a finished run"),
    ],
)
def test_mistakes_in_its_description(load, teacher, message):
    text = SUITE.format(strategy="pretrained", protocol="crd", dataset="cifar100", method="kd")
    with pytest.raises(BadSuite) as error:
        load(text.replace("{run: 3fa2c81b}", teacher))
    assert message in str(error.value)


def test_a_record_that_says_nothing_is_no_run(load, tmp_path):
    (tmp_path / "s.yaml").write_text(
        SUITE.format(strategy="pretrained", protocol="crd", dataset="cifar100", method="kd")
    )
    with pytest.raises(BadInput, match=r"the run's spec\.json cannot be read"):
        load_suite(tmp_path / "s.yaml", known=lambda document: setattr(document, "run", lambda id: {}))
