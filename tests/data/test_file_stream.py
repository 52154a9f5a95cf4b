"""Images that stay files: the same batches whatever the number of workers, and each the cut that it should be."""

import multiprocessing
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.catalogue import datasets as catalogue
from kdbench.data import file_stream as module
from kdbench.data.augment import random_resized_crop
from kdbench.data.batch import Portion, generator
from kdbench.data.file_stream import FileStream, FileTestSet, loader_workers
from kdbench.data.image_sets import apply_scenario, load_images
from kdbench.data.preprocess import Normalisation, center_crop, pixels
from kdbench.data.stream import DataSource
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec, Preprocessing, Pretraining, Scenario


CPU = torch.device("cpu")
OFFICIAL = runpy.run_path(str(Path(__file__).parents[1] / "datafiles" / "official.py"))
SPEC = DatasetSpec(name="imagenet")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of an ImageNet of 3 classes with 18 training and 6 test images, which the catalogue knows."""
    facts, files = OFFICIAL["imagenet"]()
    OFFICIAL["write"](tmp_path, facts, files)
    monkeypatch.setattr(catalogue, "_spellings", lambda: {"imagenet": facts})
    return tmp_path


@pytest.fixture
def train(root):
    return load_images(SPEC, root)[0]


def small(recipe, **changes):
    return recipe.model_copy(update={"size": 24, "batch": 7, **changes})


def epoch_of(stream, epoch, **how):
    return list(stream.epoch(epoch, **how))


def equal(left, right):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_epoch_is_the_same_for_any_number_of_workers_and_after_a_broken_one(train, recipe, monkeypatch):
    streams = []
    for workers in (1, 2):
        monkeypatch.setattr(module, "loader_workers", lambda workers=workers: workers)
        streams.append(FileStream(train, small(recipe), SPEC, ("seed", 0), CPU))
    state = torch.random.get_rng_state()
    first = epoch_of(streams[0], 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    next(streams[1].epoch(1))
    assert equal(epoch_of(streams[1], 2), first)
    third = epoch_of(streams[0], 3)
    assert not torch.equal(third[0].indices, first[0].indices)
    for number in (2, 3, 1):
        assert equal(epoch_of(streams[0], 2, first=number), first[number:])
    assert equal(epoch_of(streams[0], 2), first)
    assert [len(batch) for batch in first] == [7, 7, 4]
    assert torch.equal(torch.cat([batch.indices for batch in first]).sort().values, torch.arange(18))
    normalise = Normalisation(recipe, SPEC, CPU)
    for batch in first:
        assert torch.equal(batch.labels, train.labels[batch.indices])
        assert batch.teacher_images is None
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            draw = generator("cut", 0, "seed", 0, 2, index)
            expected = pixels(random_resized_crop(train.read(index), 24, draw, flip=True))
            assert torch.equal(image, normalise(expected[None])[0])


def test_portions_make_up_the_batches(train, recipe, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 1)
    stream = FileStream(train, small(recipe, batch=8), SPEC, ("seed",), CPU)
    whole = epoch_of(stream, 1, transforms=["four"], first=1)  # 8 and 2 of 18
    left, right = (
        epoch_of(stream, 1, transforms=["four"], first=1, portion=Portion(rank, 2, multiple=2)) for rank in (0, 1)
    )
    assert [batch.portions for batch in left] == [2, 1]
    for attribute in ("images", "labels", "indices"):
        parts = [getattr(batch, attribute) for batch in (left[0], right[0])]
        assert torch.equal(torch.cat(parts), getattr(whole[0], attribute))
        assert torch.equal(getattr(right[1], attribute), getattr(whole[1], attribute))
    copies = [batch.views["four"].images for batch in (left[0], right[0])]
    torch.testing.assert_close(torch.cat(copies), whole[0].views["four"].images)


def test_a_teachers_view_is_another_cut_of_the_same_image(train, recipe, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 1)
    part = {"areas": (0.1, 0.2), "ratios": (0.9, 0.9)}
    same = {"crop_area": part["areas"], "crop_ratio": part["ratios"]}
    view = Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), **same)
    both = FileStream(train, small(recipe), SPEC, ("seed", 0), CPU, view)
    (batch, *_), (alone, *_) = (
        epoch_of(both, 1, with_teacher=with_it, transforms=["four"]) for with_it in (True, False)
    )
    assert batch.teacher_images.shape == (7, 3, 32, 32)
    assert torch.equal(batch.images, alone.images)
    assert alone.teacher_images is None
    assert batch.views["four"].teacher_images.shape == (21, 3, 32, 32)
    assert torch.equal(batch.views["four"].images, alone.views["four"].images)
    assert alone.views["four"].teacher_images is None
    normalise = Normalisation(view, SPEC, CPU)
    for image, index in zip(batch.teacher_images, batch.indices.tolist(), strict=True):
        draw = generator("cut", 1, "seed", 0, 1, index)
        expected = pixels(random_resized_crop(train.read(index), 32, draw, flip=False, **part))
        assert torch.equal(image, normalise(expected[None])[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_tests_see_the_centres_in_order_as_often_as_they_like(root, recipe, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 2)
    test = load_images(SPEC, root)[1]
    loaded = FileTestSet(test, Preprocessing(size=24), SPEC, CPU, batch=4)
    assert len(loaded) == 6
    normalise = Normalisation(Preprocessing(), SPEC, CPU)
    for _ in range(2):
        batches = list(loaded)
        assert [len(labels) for _, labels in batches] == [4, 2]
        assert torch.equal(torch.cat([labels for _, labels in batches]), test.labels)
        expected = torch.stack([pixels(center_crop(test.read(index), 24)) for index in range(6)])
        assert torch.equal(torch.cat([images for images, _ in batches]), normalise(expected))
    ((images, labels),) = loaded.batches(1, 2)
    assert torch.equal(images, batches[1][0])
    assert torch.equal(labels, batches[1][1])


def test_a_damaged_image_is_named(train, recipe, root, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 1)
    (root / "imagenet" / "train" / "n02" / "n02_3.JPEG").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"n02_3.JPEG: is not an image: .*Replace it by the official file"):
        epoch_of(FileStream(train, small(recipe), SPEC, ("seed", 0), CPU), 1)


def test_the_workers_end_with_the_stream(train, recipe, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 1)
    before = set(multiprocessing.active_children())
    stream = FileStream(train, small(recipe), SPEC, ("seed", 0), CPU)
    epoch_of(stream, 1)
    assert set(multiprocessing.active_children()) - before
    del stream
    assert not set(multiprocessing.active_children()) - before


def test_parts_and_scenarios_are_those_of_any_data_set(root):
    spec = DatasetSpec(name="imagenet", classes=2, train_per_class=4, test_per_class=1)
    train, test = load_images(spec, root)
    assert train.classes == 2
    assert torch.bincount(train.labels).tolist() == [4, 4]
    assert torch.bincount(test.labels).tolist() == [1, 1]
    whole = load_images(SPEC, root)[0]
    assert set(train.names) < set(whole.names)
    few = apply_scenario(whole, Scenario(fraction=0.5), SPEC, 0)
    assert torch.bincount(few.labels).tolist() == [3, 3, 3]
    assert set(few.names) < set(whole.names)
    noisy = apply_scenario(whole, Scenario(label_noise=0.5), SPEC, 0)
    assert np.array_equal(noisy.names, whole.names)
    assert torch.equal(noisy.clean_labels, whole.labels)
    assert [int((noisy.labels != whole.labels)[whole.labels == label].sum()) for label in range(3)] == [3, 3, 3]
    assert torch.equal(noisy.select(torch.tensor([5, 0])).clean_labels, whole.labels[[5, 0]])


def test_the_source_streams_it(root, recipe, monkeypatch):
    monkeypatch.setattr(module, "loader_workers", lambda: 1)
    source = DataSource(root, CPU)
    stream = source.stream(SPEC, Scenario(label_noise=0.5), small(recipe), 0)
    (batch, *_) = epoch_of(stream, 1)
    assert not torch.equal(batch.labels, batch.clean_labels)
    assert torch.equal(batch.clean_labels, source.sets(SPEC)[0].labels[batch.indices])
    assert len(source.test(SPEC, small(recipe))) == 6
    assert len(source.train(SPEC, small(recipe))) == 18
    with pytest.raises(BadInput, match="SimCLR needs its images in memory"):
        source.two_views(SPEC, Pretraining(recipe=recipe), 0)


def test_as_many_workers_as_cores_up_to_eight(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(3)), raising=False)
    assert loader_workers() == 3
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert loader_workers() == 8


ORPHANS = """
import os, sys, torch, numpy as np, multiprocessing
from pathlib import Path
from kdbench.data.file_stream import FileStream
from kdbench.data.image_sets import ImageFiles
from kdbench.suite.specs import DatasetSpec, Recipe

if __name__ == "__main__":
    files = ImageFiles(Path(sys.argv[1]), np.array([b"n01/n01_0.JPEG"] * 64), torch.zeros(64, dtype=torch.long), 2, 24)
    stream = FileStream(files, Recipe(epochs=1, batch=2, lr=0.1), DatasetSpec(name="imagenet"), (), torch.device("cpu"))
    next(stream.epoch(1))
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_no_worker_outlives_a_killed_process(root, tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    folder = str(root / "imagenet" / "train")
    done = subprocess.run(
        [sys.executable, str(script), folder], capture_output=True, text=True, check=False, timeout=60
    )
    children = [int(pid) for pid in done.stdout.split()]
    assert children, done.stderr
    for _ in range(100):
        children = [pid for pid in children if alive(pid)]
        if not children:
            break
        time.sleep(0.05)
    assert not children


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("view", [None, Preprocessing(size=24)])
def test_copies_are_cuts_of_their_own_and_leave_the_images_as_they_are(train, recipe, view):
    stream = FileStream(train, small(recipe), SPEC, ("s",), CPU, view)
    for plain, seen in zip(epoch_of(stream, 1), epoch_of(stream, 1, transforms=["rotations", "four"]), strict=True):
        assert torch.equal(plain.images, seen.images)
        assert set(seen.views) == {"rotations", "four"}
        for copies in seen.views.values():
            assert copies.images.shape == (3 * len(seen), *seen.images.shape[1:])
            assert (copies.teacher_images is None) == (view is None)
        turned = seen.views["rotations"]
        assert not torch.equal(torch.rot90(turned.images[0], -1, (1, 2)), seen.images[0])
