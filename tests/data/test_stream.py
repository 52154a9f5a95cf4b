"""The stream: pure, complete, and equal to a slow implementation of what it promises."""

import pytest
import torch
import torch.nn.functional as F

from kdbench.catalogue.datasets import dataset
from kdbench.data.stream import DataSource, FeatureStream, Normalisation, Stream, TestSet
from kdbench.data.views import TwoViews
from kdbench.suite.protocol import bundled_protocol, protocol_names
from kdbench.suite.specs import DatasetSpec, Preprocessing, Pretraining, Scenario


CPU = torch.device("cpu")


def epoch_of(stream, epoch):
    batches = list(stream.epoch(epoch))
    return (
        torch.cat([b.images for b in batches]),
        torch.cat([b.labels for b in batches]),
        torch.cat([b.indices for b in batches]),
    )


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_an_epoch_is_the_same_whenever_and_wherever_it_is_asked_for(images, recipe, digits):
    stream = Stream(images, recipe, digits, ("seed", 0), CPU)
    first, third = epoch_of(stream, 1), epoch_of(stream, 3)
    torch.manual_seed(99)
    again = Stream(images, recipe, digits, ("seed", 0), CPU)
    assert equal(epoch_of(again, 3), third)
    assert equal(epoch_of(again, 1), first)
    assert not equal(first, third)


def test_an_unfinished_epoch_leaves_no_trace(images, recipe, digits):
    stream = Stream(images, recipe, digits, ("seed", 0), CPU)
    whole = epoch_of(stream, 2)
    next(stream.epoch(2))
    assert equal(epoch_of(stream, 2), whole)


@pytest.mark.parametrize("first", [1, 4, 99])
def test_the_end_of_an_epoch_alone_is_the_end_of_the_whole_one(images, recipe, digits, first):
    """For every source of batches, with all that a batch can hold."""
    kinds = ["rotations", "four"]
    view = Preprocessing(crop_padding=1, flip=True)
    features = torch.arange(2.0 * len(images)).view(-1, 2)
    sources = [
        (Stream(images, recipe, digits, ("seed",), CPU, view), {"transforms": kinds}),
        (TwoViews(images, Pretraining(recipe=recipe), digits, ("seed",), CPU), {}),
        (FeatureStream(features, images.labels, recipe.batch, ("seed",)), {}),
    ]
    for source, how in sources:
        whole, end = list(source.epoch(2, **how)), list(source.epoch(2, first=first, **how))
        assert len(end) == max(0, len(whole) - first)
        for left, right in zip(whole[first:], end, strict=True):
            assert equal((left.images, left.labels, left.indices), (right.images, right.labels, right.indices))
            assert not how or torch.equal(left.teacher_images, right.teacher_images)
            for kind in how.get("transforms", ()):
                ours, theirs = left.views[kind], right.views[kind]
                assert equal(
                    (ours.images, ours.labels, ours.teacher_images),
                    (theirs.images, theirs.labels, theirs.teacher_images),
                )


def test_another_seed_is_another_stream(images, recipe, digits):
    orders = [epoch_of(Stream(images, recipe, digits, ("seed", n), CPU), 1)[2] for n in range(3)]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_every_image_comes_once_and_the_short_last_batch_is_kept(images, recipe, digits):
    stream = Stream(images, recipe, digits, ("seed", 0), CPU)
    batches = list(stream.epoch(1))
    assert [len(batch) for batch in batches] == [16, 16, 16, 16, 6]
    assert len(stream) == 70
    indices = torch.cat([batch.indices for batch in batches])
    assert torch.equal(indices.sort().values, torch.arange(70))
    assert all(torch.equal(batch.labels, images.labels[batch.indices]) for batch in batches)


@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_flip_and_normalisation_against_one_image_at_a_time(images, recipe, digits, padding, flip):
    recipe = recipe.model_copy(update={"crop_padding": padding, "flip": flip})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset("digits").mean, dataset("digits").std))
    crops, flips = set(), 0
    for batch in Stream(images, recipe, digits, ("seed", 0), CPU).epoch(1):
        assert batch.images.dtype == torch.float32
        for image, index in zip(batch.images, batch.indices, strict=True):
            padded = F.pad(images.images[index], (padding,) * 4)
            found = []
            for y in range(2 * padding + 1):
                for x in range(2 * padding + 1):
                    window = padded[:, y : y + 32, x : x + 32]
                    for turned in (False, True):
                        pixels = window.flip(-1) if turned else window
                        if torch.allclose((pixels.float() / 255 - mean) / std, image, atol=1e-5):
                            found.append((y, x, turned))
            assert len(found) == 1
            crops.add(found[0][:2])
            flips += found[0][2]
    assert flips == 0 if not flip else 20 < flips < 50
    assert len(crops) > min(1, padding) * 15


def test_crops_and_flips_are_drawn_evenly_per_image(recipe, digits):
    """A marked pixel tells where each of many equal images was cut, and whether it was turned."""
    from kdbench.data.image_sets import ImageSet

    count = 5000
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, 10, 5] = 255
    train = ImageSet(image.expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.long), 10)
    recipe = recipe.model_copy(update={"batch": 1000})
    pixels = epoch_of(Stream(train, recipe, digits, ("seed", 0), CPU), 1)[0][:, 0]
    spots = pixels.flatten(1).argmax(1)
    rows, columns = spots // 32, spots % 32
    turned = columns > 16
    assert abs(turned.float().mean() - 0.5) < 0.03
    for offsets in (10 - rows, torch.where(turned, columns - 26, 5 - columns)):
        assert torch.equal(offsets.unique(), torch.arange(-2, 3))
        shares = torch.bincount(offsets + 2) / count
        assert (shares - 0.2).abs().max() < 0.03
    assert abs(torch.corrcoef(torch.stack([rows.float(), columns.where(~turned, 31 - columns).float()]))[0, 1]) < 0.05


@pytest.mark.parametrize("protocol", protocol_names())
def test_each_protocol_normalises_with_its_own_constants(protocol):
    spec = DatasetSpec(name="cifar100")
    settings = bundled_protocol(protocol).recipe("resnet8x4", DatasetSpec(name="cifar100"))
    mean, std = settings.mean or dataset("cifar100").mean, settings.std or dataset("cifar100").std
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    before = pixels.clone()
    assert torch.allclose(Normalisation(settings, spec, CPU)(pixels), expected.float(), atol=1e-5)
    assert torch.equal(pixels, before)


def test_the_test_set_comes_whole_in_order_and_untouched(images, recipe, digits):
    test = TestSet(images, recipe, digits, CPU, batch=32)
    batches = list(test)
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), Normalisation(recipe, digits, CPU)(images.images))


@pytest.mark.parametrize(("device", "side", "batch"), [("cpu", 32, 256), ("meta", 32, 1024), ("meta", 224, 256)])
def test_small_images_are_tested_in_larger_batches_on_a_gpu(images, recipe, digits, device, side, batch):
    view = recipe.model_copy(update={"size": side})
    assert TestSet(images, view, digits, torch.device(device)).batch == batch


def test_the_source_gives_equal_streams_for_equal_settings_and_others_for_others(recipe, tmp_path):
    spec = DatasetSpec(name="digits", train_per_class=6, test_per_class=2)
    source = DataSource(tmp_path, CPU)
    plain = epoch_of(source.stream(spec, Scenario(), recipe, 0), 1)
    assert equal(plain, epoch_of(DataSource(tmp_path, CPU).stream(spec, Scenario(), recipe, 0), 1))
    assert not equal(plain, epoch_of(source.stream(spec, Scenario(), recipe, 1), 1))
    noisy = epoch_of(source.stream(spec, Scenario(label_noise=0.5), recipe, 0), 1)
    assert not torch.equal(noisy[1], plain[1])
    assert len(source.stream(spec, Scenario(fraction=0.5), recipe, 0)) == 30
    assert len(source.test(spec, recipe)) == 20
