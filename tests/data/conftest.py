"""A handful of made-up images, and the settings that the tests vary."""

import os
from pathlib import Path

import pytest
import torch

from kdbench.data.image_sets import ImageSet
from kdbench.suite.specs import DatasetSpec, Recipe


@pytest.fixture
def recipe():
    return Recipe(epochs=2, batch=16, lr=0.1, crop_padding=2, flip=True)


@pytest.fixture
def digits():
    return DatasetSpec(name="digits")


@pytest.fixture
def images():
    """70 random 32x32 images of 10 classes."""
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return ImageSet(pixels, torch.arange(70) % 10, 10)


@pytest.fixture(scope="session")
def real_data():
    """The folder of the official CIFAR files."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("KDBENCH_TEST_DATA", beside))
    if not (root / "cifar-100-python" / "train").is_file():
        pytest.skip("the official CIFAR-100 files are not here; KDBENCH_TEST_DATA names the folder that holds them")
    return root
