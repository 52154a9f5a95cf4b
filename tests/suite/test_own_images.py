"""Images of one's own in a suite: names and places are no part of a run's identity, the content is."""

import shutil

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import BadSuite
from kdbench.planning.plan import changed_plugins
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.store.suites import ArchivedFiles, image_sources, keep_suites
from kdbench.suite.load import load_suite
from kdbench.suite.specs import DatasetSpec, RunSpec


SUITE = """\
protocol: {{base: smoke, batch: 4, crop_area: [0.5, 1.0], datasets: {{{name}: {{epochs: 7}}}}}}
datasets:
  {name}: {entry}
dataset: {dataset}
grid: {{teacher: resnet8, student: resnet8, method: [ce, kd, semckd]}}
"""


@pytest.fixture
def suite(tmp_path):
    """suite(folder, name, entry, dataset): the path of a suite in a folder with pictures of two classes."""

    def write(folder="first", name="pets", entry="{folder: pictures, size: 16}", dataset=None):
        place = tmp_path / folder
        if not (place / "pictures").exists():
            rng = np.random.default_rng(0)
            for part in ("train", "test"):
                for label in ("cat", "dog"):
                    (place / "pictures" / part / label).mkdir(parents=True)
                    for number in range(4):
                        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
                        Image.fromarray(pixels).save(place / "pictures" / part / label / f"{number}.png")
        file = place / "suite.yaml"
        file.write_text(SUITE.format(name=name, entry=entry, dataset=dataset or name))
        return file

    return write


def ids(file):
    return [run.id for run in load_suite(file).runs]


def test_names_and_places_do_not_count_but_the_content_does(suite, tmp_path):
    before = ids(suite())
    assert ids(suite(name="animals")) == before
    moved = shutil.copytree(tmp_path / "first", tmp_path / "moved")
    assert ids(moved / "suite.yaml") == before
    assert len({*before, *ids(suite(entry="{folder: pictures, size: 12}"))}) == 2 * len(before)
    Image.new("L", (16, 16), 3).save(moved / "pictures" / "test" / "dog" / "3.png")
    assert len({*before, *ids(moved / "suite.yaml")}) == 2 * len(before)


def test_what_changed_is_told(suite, tmp_path):
    file = suite()
    run = load_suite(file).runs[1].spec
    store = Store(tmp_path / "results")
    record = store.run(run.id)
    record.begin(run.canonical())
    score, metrics = Accuracy(epoch=1, top1=9.0, top5=50.0), record.write_metrics([])
    result = Result(id=run.id, kind="run", last=score, best=score, weights_sha256="0" * 64, metrics_sha256=metrics)
    record.finish(result, {})
    Image.new("L", (16, 16), 3).save(tmp_path / "first" / "pictures" / "train" / "dog" / "3.png")
    edited = load_suite(file).specs.values()
    assert changed_plugins(edited, store) == ["the images of pets have changed since 1 finished run: not reused."]


def test_the_spec_says_all_of_the_images(suite):
    spec = load_suite(suite()).runs[1].spec
    assert (spec.dataset.name, spec.dataset.class_count, spec.dataset.image_size) == ("pets", 2, 16)
    written = spec.canonical()["dataset"]
    assert "name" not in written
    assert written["images"]["class_names"] == ["cat", "dog"]
    again = RunSpec.model_validate(spec.canonical())
    assert (again.id, again.dataset.name) == (spec.id, f"images {spec.dataset.images.sha256[:8]}")
    assert DatasetSpec(name="digits").canonical() == {"name": "digits"}


def test_parts_and_scenarios(suite):
    part = "{name: pets, train_per_class: 3, val_split: 0.25}"
    (spec, *_) = load_suite(suite(dataset=part)).specs.values()
    assert spec.dataset.train_per_class == 3


def test_images_that_stay_files_are_cut_as_the_protocol_says(suite):
    runs = [
        load_suite(suite(entry=f"{{folder: pictures, size: 16, stream: {stream}}}")).runs
        for stream in ("true", "false")
    ]
    assert [run.spec.recipe.crop_area for run in (runs[0][0], runs[1][0])] == [(0.5, 1.0), None]
    assert [run.spec.dataset.images.streamed for run in (runs[0][0], runs[1][0])] == [True, False]
    assert runs[0][0].spec.recipe.epochs == 7  # what the protocol says of the suite's own set
    assert runs[0][0].id != runs[1][0].id


def test_images_that_are_gone(suite, tmp_path):
    """What is known of them is kept with the results, so that these can be reported."""
    file = suite()
    loaded = load_suite(file)
    store = Store(tmp_path / "results")
    keep_suites([loaded], store)
    assert image_sources(store) == loaded.image_sources
    shutil.rmtree(tmp_path / "first" / "pictures")
    with pytest.raises(BadSuite, match="pictures: no such folder"):
        load_suite(file)
    archived = ArchivedFiles([store])
    assert [run.id for run in load_suite(file, known=archived.tell).runs] == [run.id for run in loaded.runs]
    (message,) = archived.messages
    assert "pictures is not there: what is known of its images is taken from the run of" in message


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"entry": "{folder: picture, size: 16}"}, "datasets.pets", "picture: no such folder"),
        ({"entry": "{folder: pictures}"}, "datasets.pets", "say the side of the images in pixels"),
        ({"entry": "{size: 16}"}, "datasets.pets", "name one place: a folder, a csv, an npz or a folder of huggingface"),
        ({"entry": "{folder: pictures, size: 16, test_splt: 0.2}"}, "datasets.pets.test_splt", "Did you mean 'test_split'?"),
        ({"name": "cifar10"}, "datasets.cifar10", "is the name of a data set of kdbench: give yours another"),
        ({"dataset": "pet"}, "dataset", "unknown dataset 'pet'. Did you mean 'pets'?"),
        ({"dataset": "{name: pets, images: 3}"}, "dataset", "unknown key 'images'"),
        ({"dataset": "{name: pets, train_per_class: 5}"}, "dataset.train_per_class", "pets has only 4 train per class"),
    ],
)  # fmt: skip
def test_mistakes(suite, keys, path, message):
    with pytest.raises(BadSuite) as caught:
        load_suite(suite(**keys))
    problems = {(problem.path, problem.message) for problem in caught.value.problems}
    assert any(place == path and message in text for place, text in problems), problems
    assert len(problems) == 1
