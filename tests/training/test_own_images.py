"""Runs on images of one's own: stopped = uninterrupted, under scenarios and a validation split, too."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.image_sets import ImageFiles
from kdbench.data.stream import DataSource
from kdbench.datafiles import own_images
from kdbench.datafiles.own_files import ImageSource
from kdbench.suite.specs import DatasetSpec, Scenario
from kdbench.training.build import load


@pytest.fixture
def pets(tmp_path):
    """The data set of a NumPy file with three classes."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 12, 12), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "pets.npz", images=images, labels=labels, class_names=["cat", "dog", "fox"])
    source = ImageSource("npz", str(tmp_path / "pets.npz"), test_split=0.25)
    return DatasetSpec(name="pets", images=own_images.facts_of(source)), source


def test_stopped_and_not(bench, make_run, teacher, pets):
    spec, source = pets
    changes = {"dataset": spec, "teacher": teacher.model_copy(update={"dataset": spec})}
    runs = [make_run(terms).model_copy(update=changes) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "crd": 1})]
    whole, hurt = bench("whole"), bench("hurt", checkpoint_seconds=0)
    whole.train(*runs)
    hurt.teachers(*runs)
    assert hurt.again(stop_at_call=5).cohort(*runs).stopped
    own_images._arrays(spec.images.sha256).unlink()  # another machine
    last = hurt.again()
    last.data = DataSource(last.root, torch.device("cpu"), sources={spec.images.sha256: source})
    last.cohort(*runs)
    assert hurt.files(*runs) == whole.files(*runs)
    student = load(runs[0].id, hurt.store, hurt.root)
    assert student.class_names == ("cat", "dog", "fox")
    assert student(torch.zeros(1, 3, 50, 40, dtype=torch.uint8)).logits.shape == (1, 3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_images_that_stay_files(tmp_path, recipe):
    """They are decoded by the rule for images of one's own, and cut as images that stay files are."""
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for each in range(3):
                clear = Image.new("RGBA", (20 + each, 16), (90 * number, 7, 0, 0))
                clear.save(tmp_path / "pets" / part / name / f"{each}.png")
    source = ImageSource("folder", str(tmp_path / "pets"), 12, stream=True)
    spec = DatasetSpec(name="pets", images=own_images.facts_of(source))
    data = DataSource(tmp_path, torch.device("cpu"), sources={spec.images.sha256: source})
    assert isinstance(data.sets(spec)[0], ImageFiles)
    first, last = data.stream(spec, Scenario(), recipe.model_copy(update={"batch": 4}), 0).epoch(1)
    assert (first.images.shape, last.images.shape) == ((4, 3, 12, 12), (2, 3, 12, 12))
    assert first.images.std() < 1e-3  # what is transparent is white
    assert sorted([*first.labels.tolist(), *last.labels.tolist()]) == [0] * 3 + [1] * 3
    ((images, labels),) = data.test(spec, recipe)
    assert (images.shape, labels.tolist()) == ((6, 3, 12, 12), [0] * 3 + [1] * 3)


def test_parts_and_scenarios(bench, pets):
    spec, _ = pets
    part = spec.model_copy(update={"train_per_class": 8, "val_split": 0.25})
    other = part.model_copy(update={"name": "animals"})
    data = bench().data
    train, test = data.sets(part)
    assert (len(train), len(test)) == (24, 12)
    few = data.samples(part, Scenario(fraction=0.5, label_noise=0.25), 1)
    assert len(few.indices) == 12
    assert few.changed == 3
    assert data.samples(other, Scenario(fraction=0.5, label_noise=0.25), 1).sha256 == few.sha256
