"""NumPy files of images of one's own: what they must hold, and what is read of them."""

import numpy as np
import pytest

from kdbench.datafiles import own_images
from kdbench.datafiles.own_files import ImageSource
from kdbench.datafiles.own_images import facts_of, read
from kdbench.errors import BadInput


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 10, 10, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2
HALVES = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:4], "test_labels": LABELS[:4]}


@pytest.fixture
def source(tmp_path):
    """source({name: array}, test_split=None): a file that holds these."""

    def save(arrays, test_split=None):
        np.savez(tmp_path / "own.npz", **arrays)
        return ImageSource("npz", str(tmp_path / "own.npz"), test_split=test_split)

    return save


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES, "labels": LABELS}, "holds no train_images and train_labels. It has pictures, labels"),
        ({"x": IMAGES, "y": LABELS}, "has no test_images and test_labels: say test_split: 0.2"),
        (HALVES | {"test_labels": LABELS[:4] + 1}, "its training labels are of 2 classes, and its test labels or"),
        (
            HALVES | {"class_names": ["cat", "dog", "cow"]},
            "its training labels are of 2 classes, and its test labels or",
        ),
        (HALVES | {"train_images": IMAGES / 255}, "images are uint8 [N, H, W] or [N, H, W, 3]"),
        (HALVES | {"train_images": IMAGES[..., :2]}, "holds images uint8 [8, 10, 10, 2] and labels int64 [8, 1]"),
        (HALVES | {"train_images": IMAGES[:7]}, "holds images uint8 [7, 10, 10, 3] and labels int64 [8, 1]"),
        (HALVES | {"test_labels": LABELS[:4] - 1}, "labels whole numbers [N] from 0"),
        (HALVES | {"test_labels": LABELS[:4] / 1}, "labels whole numbers [N] from 0"),
        (HALVES | {"train_labels": np.stack([LABELS, LABELS], 1)}, "labels int64 [8, 2]"),
    ],
)
def test_what_is_no_data_set_is_refused(source, arrays, message):
    with pytest.raises(BadInput) as caught:
        facts_of(source(arrays))
    assert message in str(caught.value)


def test_names_of_classes_come_with_them(source):
    assert facts_of(source(HALVES | {"class_names": ["cat", "dog"]}))["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(("share", "held_out"), [(0.12, None), (0.13, 1), (0.6, 2), (0.87, 3), (0.88, None)])
def test_each_class_has_images_on_both_sides_of_a_split(source, share, held_out):
    halved = source({"x": IMAGES, "y": LABELS}, share)
    if held_out is None:
        with pytest.raises(
            BadInput, match=f"test_split {share} of 4 images of a class leaves none to train or none to test"
        ):
            read(halved)
    else:
        found = read(halved)
        assert (len(found.train.labels), sorted(found.test.labels)) == (
            8 - 2 * held_out,
            [0] * held_out + [1] * held_out,
        )


def test_what_is_no_numpy_file_is_refused(tmp_path):
    (tmp_path / "own.npz").write_bytes(b"PK")
    with pytest.raises(BadInput, match="is no NumPy file of images"):
        facts_of(ImageSource("npz", str(tmp_path / "own.npz")))


def test_arrays_may_fill_the_memory_that_is_theirs_and_no_more(source, monkeypatch):
    monkeypatch.setattr(own_images, "MOST_BYTES", len(IMAGES) * 10 * 10 * 3)
    read(source(HALVES))
    monkeypatch.setattr(own_images, "MOST_BYTES", len(IMAGES) * 10 * 10 * 3 - 1)
    with pytest.raises(BadInput, match="save them as files, which are streamed"):
        read(source(HALVES))
