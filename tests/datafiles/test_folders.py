"""ImageNet's folders: names and labels, and the counts that the catalogue states."""

import os
from dataclasses import replace

import pytest

from kdbench.catalogue.datasets import dataset
from kdbench.datafiles.fetch import status
from kdbench.datafiles.folders import class_names, list_folders
from kdbench.datafiles.readers import prepare
from kdbench.errors import BadInput


@pytest.fixture
def small(official, tmp_path):
    facts, files = official.imagenet()
    official.write(tmp_path, facts, files)
    return facts


def test_the_full_sets_counts():
    facts = dataset("imagenet")
    assert (facts.classes, facts.train, facts.test, facts.size) == (1000, 1_281_167, 50_000, 224)


def test_names_and_labels(small, tmp_path, heard):
    (tmp_path / "imagenet" / "train" / "n01" / "notes.txt").write_text("no image")
    (tmp_path / "imagenet" / "train" / "README").write_text("no class")
    (tmp_path / "imagenet" / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "imagenet" / "train" / "n01" / "._n01_0.JPEG").write_text("no image")
    train, test = list_folders(small, tmp_path)
    assert [os.fsdecode(name) for name in test.names] == [f"n0{n}/n0{n}_{k}.JPEG" for n in (1, 2, 3) for k in (0, 1)]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert (train.folder / os.fsdecode(train.names[7])).is_file()
    assert prepare(small, tmp_path, heard) == (18, 6)
    assert status(small, tmp_path, verify=True).state == "ready"


def test_folders_that_do_not_hold_what_they_should(small, tmp_path):
    folder = tmp_path / "imagenet"
    with pytest.raises(BadInput, match=r"train has 18 images, expected 19.*account at image-net"):
        list_folders(replace(small, train=19), tmp_path)
    with pytest.raises(BadInput, match=r"train has 3 folders of classes, expected 1,000"):
        list_folders(replace(small, classes=1000), tmp_path)
    (folder / "val" / "n01").rename(folder / "val" / "n09")
    with pytest.raises(BadInput, match=r"folders of different names: train/n01, val/n09\."):
        list_folders(small, tmp_path)
    seen = status(small, tmp_path, verify=True)
    assert seen.state == "damaged"
    assert "different names" in seen.todo
    assert seen.todo.count(small.by_hand) == 1
    (folder / "val").rename(folder / "validation")
    with pytest.raises(BadInput, match="imagenet lacks one of the files train, val"):
        list_folders(small, tmp_path)


def test_classes_are_named_by_the_catalogue_or_else_by_the_folders_that_are_there(small, tmp_path):
    assert class_names(dataset("cifar10"), tmp_path)[:2] == ("airplane", "automobile")
    assert class_names(small, tmp_path / "elsewhere") == ()
    assert class_names(small, tmp_path) == ("n01", "n02", "n03")
