"""What arrays of a data set must be, whatever file they come from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kdbench.catalogue.datasets import dataset
from kdbench.datafiles.readers import check_kind, checked
from kdbench.errors import BadInput


FACTS = dataclasses.replace(dataset("cifar10"), size=2, train=3, test=2)
FILE = Path("file")


def images(count):
    return np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)


def test_a_split_has_its_channels_first_and_long_labels():
    split = checked(FACTS, FILE, "train", images(3), np.array([0, 9, 4], dtype=np.uint8))
    assert np.array_equal(split.images, np.stack([image.transpose(2, 0, 1) for image in images(3)]))
    assert (split.labels.tolist(), split.labels.dtype) == ([0, 9, 4], np.int64)


@pytest.mark.parametrize(("labels", "words"), [([0, 1, 10], "from 0 to 10"), ([3, -1, 9], "from -1 to 9")])
def test_labels_that_are_no_class_are_refused(labels, words):
    with pytest.raises(BadInput, match=f"file: train_labels goes {words}, not 0 to 9"):
        checked(FACTS, FILE, "train", images(3), np.array(labels))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "words"),
    [
        ("train_images", (2, 2, 2, 3), "uint8", r"uint8 \(2, 2, 2, 3\), expected uint8 \(3, 2, 2, 3\)"),
        ("test_images", (2, 2, 2, 3), "float32", r"float32 \(2, 2, 2, 3\), expected uint8 \(2, 2, 2, 3\)"),
        ("test_images", (2, 2, 2, 1), "uint8", r"uint8 \(2, 2, 2, 1\), expected uint8 \(2, 2, 2, 3\)"),
        ("train_labels", (2,), "int64", r"int64 \(2,\), expected whole numbers \(3,\)"),
        ("test_labels", (2,), "float32", r"float32 \(2,\), expected whole numbers \(2,\)"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(name, shape, kind, words):
    with pytest.raises(BadInput, match=f"file: {name} is {words}"):
        check_kind(FACTS, FILE, name, shape, np.dtype(kind))


@pytest.mark.parametrize("kind", ["int64", "uint8", "int16"])
def test_labels_are_whole_numbers_of_any_width(kind):
    check_kind(FACTS, FILE, "test_labels", (2,), np.dtype(kind))
