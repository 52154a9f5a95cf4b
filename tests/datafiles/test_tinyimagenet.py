"""TinyImageNet's folders: right labels, right counts, decoded once, and never half."""

import errno
import os

import numpy as np
import pytest

from kdbench.datafiles import readers as module
from kdbench.datafiles.fetch import find_damage, status
from kdbench.datafiles.readers import prepare, read_splits
from kdbench.errors import BadInput, KdbenchError


@pytest.fixture
def tiny(official, tmp_path):
    facts, files = official.tiny()
    official.write(tmp_path, facts, files)
    return facts


def arrays(splits):
    return [(split.images.copy(), split.labels.copy()) for split in splits]


def equal(left, right):
    return all(np.array_equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def test_labels_follow_the_sorted_classes_and_grey_images_get_three_channels(tiny, tmp_path):
    train, test = read_splits(tiny, tmp_path)
    assert train.images.shape == (12, 3, 64, 64)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    colours = train.images[:, :, 32, 32].astype(int)
    for index, (red, green, blue) in enumerate(colours.tolist()):
        expected = (77, 77, 77) if index == 3 else (60 * (index // 4), 200, 40 * (index % 4))
        assert max(abs(a - b) for a, b in zip((red, green, blue), expected, strict=True)) <= 2
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert [round(red / 60) for red in test.images[:, 0, 9, 9].tolist()] == test.labels.tolist()


def test_the_images_are_decoded_once(tiny, tmp_path, monkeypatch):
    first = arrays(read_splits(tiny, tmp_path))
    assert tiny.npz(tmp_path).is_file()
    monkeypatch.setattr(module, "_read", None)
    assert equal(arrays(read_splits(tiny, tmp_path)), first)


def test_the_decoded_file_is_enough(tiny, tmp_path):
    first = arrays(read_splits(tiny, tmp_path))
    (tmp_path / tiny.folder).rename(tmp_path / "elsewhere")
    assert not tiny.missing(tmp_path)
    assert equal(arrays(read_splits(tiny, tmp_path)), first)


@pytest.mark.parametrize("damaged", ["flipped", "short", "other"])
def test_a_damaged_file_is_built_again_where_the_folders_are_there(tiny, damaged, tmp_path, heard):
    first = arrays(read_splits(tiny, tmp_path))
    path = tiny.npz(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"flipped": flipped, "short": content[:middle], "other": b"other"}[damaged])
    assert find_damage(tiny, tmp_path)
    assert prepare(tiny, tmp_path, heard) == (12, 6)
    assert "is damaged: it is built again" in heard.notes[0]
    assert not find_damage(tiny, tmp_path)
    assert equal(arrays(read_splits(tiny, tmp_path)), first)


def test_a_damaged_file_without_folders_is_refused(tiny, tmp_path):
    tiny.npz(tmp_path).write_bytes(b"damaged")
    (tmp_path / tiny.folder).rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="does not hold tinyimagenet"):
        read_splits(tiny, tmp_path)


def test_a_full_disk_costs_the_file_not_the_run(tiny, tmp_path, heard, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_npz", full)
    assert len(read_splits(tiny, tmp_path, heard)[0].labels) == 12
    assert "cannot be written: No space left on device" in heard.notes[-1]
    with pytest.raises(KdbenchError, match="could not be written"):
        prepare(tiny, tmp_path, heard)


def test_status_says_that_it_can_be_prepared(tiny, tmp_path, heard):
    assert status(tiny, tmp_path, verify=True).todo.startswith("kdbench data prepare tinyimagenet")
    prepare(tiny, tmp_path, heard)
    seen = status(tiny, tmp_path, verify=True)
    assert (seen.state, seen.todo) == ("ready", "")
    assert seen.bytes > 18 * 64 * 64 * 3


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("train/n10/images/n10_0.JPEG", None, "train has 3 to 4 images in a class, expected 4"),
        ("train/n10/images/more.JPEG", b"", "train has 4 to 5 images in a class"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn10\t0\t0\t1\t1", "val has 0 to 1 images in a class, expected 2"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn99\t0", "does not hold tinyimagenet: 'n99'"),
        ("val/val_annotations.txt", b"val_0.JPEG n10", "does not hold tinyimagenet"),
        ("wnids.txt", b"n10 n20", "wnids.txt names 2 classes, expected 3"),
        ("wnids.txt", b"n10 n20 n40", "does not hold tinyimagenet: .*n40"),
        ("val/images/val_0.JPEG", None, "val_0.JPEG: is not an image: .*No such file"),
        ("val/images/val_0.JPEG", b"text", "val_0.JPEG: is not an image"),
    ],
)
def test_folders_that_do_not_hold_what_they_should(tiny, official, path, content, message, tmp_path):
    file = tmp_path / tiny.folder / path
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_splits(tiny, tmp_path)
    assert not tiny.npz(tmp_path).exists()


def test_an_image_of_another_size_is_refused(tiny, official, tmp_path):
    (tmp_path / tiny.folder / "val/images/val_1.JPEG").write_bytes(official.jpeg((1, 2, 3), (64, 32)))
    with pytest.raises(BadInput, match=r"val_1\.JPEG: has 64×32 pixels, expected 64×64"):
        read_splits(tiny, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_decoded_and_left_as_it_is(tiny, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    train, _ = read_splits(tiny, tmp_path)
    assert len(train.labels) == tiny.train
    assert sorted(tmp_path.rglob("*")) == before
