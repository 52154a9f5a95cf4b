"""Images held out of the training set stand in for the test set, which is left alone."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.catalogue import datasets as catalogue
from kdbench.data.image_sets import load_images
from kdbench.data.stream import DataSource
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec, Preprocessing, Pretraining, Scenario


CPU = torch.device("cpu")
OFFICIAL = runpy.run_path(str(Path(__file__).parents[1] / "datafiles" / "official.py"))


def digits(root, **part):
    return load_images(DatasetSpec(name="digits", **part), root)


def indices(images):
    return set(images.indices.tolist())


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 1), (0.1, 10), (0.255, 26), (0.9, 90)])
def test_each_class_gives_its_share_and_nothing_else_is_measured(tmp_path, share, held_out):
    whole, test = digits(tmp_path)
    train, validation = digits(tmp_path, val_split=share)
    assert torch.bincount(train.labels).tolist() == [100 - held_out] * 10
    assert torch.bincount(validation.labels).tolist() == [held_out] * 10
    assert indices(train) | indices(validation) == indices(whole)
    assert not indices(train) & indices(validation)
    assert not indices(validation) & indices(test)
    order = {place: index for index, place in enumerate(whole.indices.tolist())}
    for part in (train, validation):
        assert torch.equal(part.images, whole.images[[order[place] for place in part.indices.tolist()]])


def test_it_is_drawn_once_for_all_parts(tmp_path):
    _, validation = digits(tmp_path, val_split=0.2)
    _, smaller = digits(tmp_path, val_split=0.1)
    assert indices(smaller) < indices(validation)
    train, part = digits(tmp_path, val_split=0.2, classes=4, train_per_class=30, test_per_class=5)
    assert torch.bincount(train.labels).tolist() == [30] * 4
    assert torch.bincount(part.labels).tolist() == [5] * 4
    assert indices(part) < indices(validation)
    assert not indices(train) & indices(validation)
    few = DataSource(tmp_path, CPU).samples(DatasetSpec(name="digits", val_split=0.2), Scenario(fraction=0.5), 3)
    assert torch.bincount(few.given).tolist() == [40] * 10
    assert not set(few.indices.tolist()) & indices(validation)


def test_everything_that_a_network_is_shown_is_on_its_side(tmp_path, recipe):
    source, spec = DataSource(tmp_path, CPU), DatasetSpec(name="digits", val_split=0.2)
    train, validation = source.sets(spec)
    assert len(source.stream(spec, Scenario(), recipe, 0)) == len(train) == 800
    assert len(source.two_views(spec, Pretraining(recipe=recipe), 0)) == 800
    assert len(source.train(spec, Preprocessing())) == 800
    shown = source.test(spec, Preprocessing())
    assert torch.equal(shown.labels, validation.labels)
    assert torch.equal(shown.images, validation.images)


def test_real_cifar100(real_data):
    spec = DatasetSpec(name="cifar100", val_split=0.1)
    train, validation = load_images(spec, real_data)
    assert torch.bincount(train.labels).tolist() == [450] * 100
    assert torch.bincount(validation.labels).tolist() == [50] * 100
    assert indices(train) | indices(validation) == set(range(50_000))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An ImageNet of 3 classes with 6 training images each, whose test images cannot be decoded."""
    facts, files = OFFICIAL["imagenet"]()
    OFFICIAL["write"](tmp_path, facts, files)
    for image in (tmp_path / facts.folder / "val").rglob("*.JPEG"):
        image.write_bytes(b"never read")
    monkeypatch.setattr(catalogue, "_spellings", lambda: {"imagenet": facts})
    return tmp_path


def test_image_folders_never_open_a_test_image(folder, recipe, monkeypatch):
    monkeypatch.setattr("kdbench.data.file_stream.loader_workers", lambda: 1)
    source, spec = DataSource(folder, CPU), DatasetSpec(name="imagenet", val_split=0.34)
    train, validation = source.sets(spec)
    assert torch.bincount(train.labels).tolist() == [4] * 3
    assert torch.bincount(validation.labels).tolist() == [2] * 3
    assert {*train.names, *validation.names} == {*load_images(DatasetSpec(name="imagenet"), folder)[0].names}
    assert not {*train.names} & {*validation.names}
    small = recipe.model_copy(update={"size": 24})
    assert sum(len(batch) for batch in source.stream(spec, Scenario(), small, 0).epoch(1)) == 12
    assert sum(len(labels) for _, labels in source.test(spec, small)) == 6
    with pytest.raises(BadInput, match="is not an image"):
        list(source.test(DatasetSpec(name="imagenet"), small))
    listed = source.samples(spec, Scenario(label_noise=0.5), 0)
    assert np.array_equal(load_images(DatasetSpec(name="imagenet"), folder)[0].names[listed.indices], train.names)
    assert listed.changed == 6


def test_a_class_that_is_too_small_is_named(folder):
    with pytest.raises(BadInput, match=r"val_split 0\.05 of the 6 training images of class 0 leaves none"):
        load_images(DatasetSpec(name="imagenet", val_split=0.05), folder)
