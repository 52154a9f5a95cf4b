"""What a teacher sees of an image when it has a view of its own."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.augment import Augmenter
from kdbench.data.preprocess import Normalisation, resize
from kdbench.data.stream import Stream, TestSet
from kdbench.suite.specs import Preprocessing


CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [224, 96, 20])
def test_resizing_is_pillows_bicubic_to_within_one_level(images, size):
    ours = resize(images.images[:4], size)
    for tensor, result in zip(images.images[:4], ours, strict=True):
        picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
        theirs = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
        difference = np.abs(result.permute(1, 2, 0).numpy() - theirs)
        assert difference.max() <= 1
        assert difference.mean() < 0.02


def test_images_of_the_right_size_are_left_as_they_are(images):
    assert resize(images.images, None) is images.images
    assert resize(images.images, 32) is images.images


@pytest.mark.parametrize("stated", [{}, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}])
def test_pixels_from_0_to_255_are_normalised_as_shares(images, digits, stated):
    """By the view's mean and standard deviation, or the data set's."""
    facts = digits.facts
    mean, std = (np.reshape(stated.get(key, getattr(facts, key)), (3, 1, 1)) for key in ("mean", "std"))
    shown = Normalisation(Preprocessing(**stated), digits, CPU)(images.images).numpy()
    np.testing.assert_allclose(shown, (images.images.numpy() / 255 - mean) / std, atol=1e-5)


@pytest.fixture
def view():
    return Preprocessing(crop_padding=4, flip=True, size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_a_view_is_cropped_resized_flipped_and_normalised(images, digits, view):
    augmenter = Augmenter(images.images, view, digits, CPU)
    indices, offsets = torch.tensor([3, 5]), torch.tensor([[0, 8], [2, 4]])
    shown = augmenter(indices, offsets, torch.tensor([False, True]))
    padded = torch.nn.functional.pad(images.images, (4, 4, 4, 4))
    crops = torch.stack([padded[3, :, 0:32, 2:34], padded[5, :, 8:40, 4:36]])
    expected = Normalisation(view, digits, CPU)(resize(crops, 48))
    assert shown.shape == (2, 3, 48, 48)
    assert torch.equal(shown[0], expected[0])
    assert torch.equal(shown[1], expected[1].flip(-1))


@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_flips_are_numbered(images, digits, view, flip):
    view = view.model_copy(update={"crop_padding": 1, "flip": flip, "size": None})
    augmenter, indices = Augmenter(images.images, view, digits, CPU), torch.tensor([3, 5])
    seen = set()
    for row, column, flipped in itertools.product(range(3), range(3), range(1 + flip)):
        offsets, flips = (
            torch.tensor([[row, row], [column, column]]),
            torch.tensor([flipped, flipped], dtype=torch.bool),
        )
        (number,) = set(augmenter.number(offsets, flips).tolist())
        seen.add(number)
        assert torch.equal(augmenter.numbered(number, indices), augmenter(indices, offsets, flips))
    assert seen == set(range(view.crops))


def test_the_teachers_view_is_drawn_apart_from_the_students(images, recipe, digits, view):
    with_view = list(Stream(images, recipe, digits, ("seed",), CPU, view).epoch(1))
    without = list(Stream(images, recipe, digits, ("seed",), CPU).epoch(1))
    again = list(Stream(images, recipe, digits, ("seed",), CPU, view).epoch(1))
    for first, second, third in zip(with_view, without, again, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.indices, second.indices)
        assert first.teacher_images.shape == (len(first), 3, 48, 48)
        assert second.teacher_images is None
        assert torch.equal(first.teacher_images, third.teacher_images)
    same_settings = Preprocessing(crop_padding=recipe.crop_padding, flip=recipe.flip)
    pairs = Stream(images, recipe, digits, ("seed",), CPU, same_settings).epoch(1)
    equal = torch.cat([(b.images == b.teacher_images).flatten(1).all(1) for b in pairs])
    assert equal.float().mean() < 0.3, "two independent draws of 25 crops and a flip seldom agree"


def test_both_see_the_same_images(images, recipe, digits):
    plain = recipe.model_copy(update={"crop_padding": 0, "flip": False})
    for batch in Stream(images, plain, digits, ("seed",), CPU, Preprocessing()).epoch(2):
        assert torch.equal(batch.images, batch.teacher_images)


def test_an_epoch_without_a_teacher_leaves_its_view_out(images, recipe, digits, view):
    stream = Stream(images, recipe, digits, ("seed",), CPU, view)
    for seen, unseen in zip(stream.epoch(1), stream.epoch(1, with_teacher=False), strict=True):
        assert unseen.teacher_images is None
        assert torch.equal(seen.images, unseen.images)


def test_tests_see_the_whole_image_at_the_size_of_the_view(images, digits, view):
    test = TestSet(images, view, digits, CPU, batch=32)
    shown = torch.cat([pixels for pixels, _ in test])
    assert torch.equal(shown, Normalisation(view, digits, CPU)(resize(images.images, 48)))
