"""The official formats: every pixel and label arrives where it belongs, and nothing else is taken for them."""

import numpy as np
import pytest

from kdbench.catalogue.datasets import dataset, datasets
from kdbench.datafiles.fetch import status
from kdbench.datafiles.readers import read_splits
from kdbench.errors import BadInput


NAMES = ["cifar10", "cifar100", "stl10", "svhn"]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_labels(official, name, tmp_path):
    facts, files, halves = getattr(official, name)()
    official.write(tmp_path, facts, files)
    for split, (images, labels) in zip(read_splits(facts, tmp_path), halves.values(), strict=True):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert np.array_equal(split.images.transpose(0, 2, 3, 1), images)
        assert np.array_equal(split.labels, labels)
        assert split.images.flags.c_contiguous


@pytest.mark.parametrize("name", ["stl10", "svhn"])
def test_torchvision_reads_the_same(official, name, tmp_path, monkeypatch):
    from kdbench.data.preprocess import import_torchvision

    sets = import_torchvision().datasets
    facts, files, _ = getattr(official, name)()
    official.write(tmp_path, facts, files)
    if name == "stl10":
        monkeypatch.setattr(sets.STL10, "_check_integrity", lambda self: True)
        (tmp_path / facts.folder / "fold_indices.txt").write_text("")
        theirs = [sets.STL10(str(tmp_path), split=part) for part in ("train", "test")]
    else:
        monkeypatch.setattr(sets.SVHN, "_check_integrity", lambda self: True)
        theirs = [sets.SVHN(str(tmp_path / facts.folder), split=part) for part in ("train", "test")]
    for ours, their in zip(read_splits(facts, tmp_path), theirs, strict=True):
        assert np.array_equal(ours.images, their.data)
        assert np.array_equal(ours.labels, their.labels)


@pytest.mark.parametrize("name", NAMES)
def test_files_with_other_sums_are_refused(official, name, tmp_path):
    facts, files, _ = getattr(official, name)()
    official.write(tmp_path, facts, files)
    assert status(facts, tmp_path, verify=True).state == "ready"
    last = list(files)[-1]
    path = tmp_path / facts.folder / last
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BadInput, match=rf"{name}.* not the official one.*kdbench data download {name}"):
        read_splits(facts, tmp_path)
    assert status(facts, tmp_path).state == "ready"
    seen = status(facts, tmp_path, verify=True)
    assert (seen.state, seen.todo) == (
        "damaged",
        f"not the official file: {last}: kdbench data download {name} --data {tmp_path}",
    )
    path.unlink()
    seen = status(facts, tmp_path)
    assert (seen.state, seen.missing) == ("missing", [f"{facts.folder}/{last}"])


@pytest.mark.parametrize("name", NAMES)
def test_files_with_other_counts_are_refused(official, name, tmp_path):
    from dataclasses import replace

    facts, files, _ = getattr(official, name)()
    official.write(tmp_path, facts, files)
    with pytest.raises(BadInput, match=r"test_images is uint8 .*, expected uint8 \(7, "):
        read_splits(replace(facts, test=7), tmp_path)


def test_labels_out_of_range_are_refused(official, tmp_path):
    _, files, _ = official.stl10()
    files["test_y.bin"] = bytes([0] * 10)
    facts = official.with_sums("stl10", files, train=20, test=10)
    official.write(tmp_path, facts, files)
    with pytest.raises(BadInput, match="test_labels goes from -1 to -1, not 0 to 9"):
        read_splits(facts, tmp_path)


def test_status_of_what_is_not_there_and_of_a_begun_download(tmp_path):
    for facts in datasets().values():
        seen = status(facts, tmp_path, verify=True)
        assert seen.state == ("missing" if facts.files else "ready")
        assert len(seen.missing) == len(facts.files)
        assert facts.missing(tmp_path) == bool(facts.files)
    (tmp_path / "stl10_binary.tar.gz.part").write_bytes(b"12345")
    assert (
        status(dataset("stl10"), tmp_path).todo == f"kdbench data download stl10 --data {tmp_path} (resumes at 5 bytes)"
    )
    assert "image-net.org" in status(dataset("imagenet"), tmp_path).todo


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("STL-10", "stl10"), ("tiny-imagenet", "tinyimagenet"), ("ILSVRC2012", "imagenet"), ("svhn", "svhn")],
)
def test_other_spellings(spelling, name):
    assert dataset(spelling).name == name


def test_every_entry_can_be_fetched_or_says_how_to_get_it(tmp_path):
    for facts in datasets().values():
        assert len(facts.mean) == len(facts.std) == 3
        if facts.files:
            assert bool(facts.archives) != bool(facts.by_hand)
            assert "--data" in facts.how_to_get(tmp_path)
        for archive in facts.archives:
            assert len(archive.md5) == 32
            assert archive.url.startswith(("http://", "https://"))
