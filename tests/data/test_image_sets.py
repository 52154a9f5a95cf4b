"""Data sets: what is loaded, which part, and what is said about files that cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.catalogue.datasets import dataset
from kdbench.data.image_sets import ImageFiles, ImageSet, _digits_table, load_images
from kdbench.datafiles.own_files import ImageSource
from kdbench.datafiles.own_images import facts_of
from kdbench.errors import BadInput
from kdbench.suite import data_specs
from kdbench.suite.specs import DatasetSpec


def load(root, **spec):
    return load_images(DatasetSpec(**spec), root)


def rows(part):
    return {row.numpy().tobytes() for row in part.images}


def test_digits_are_split_by_class_and_nothing_is_in_both_parts(tmp_path):
    train, test = load(tmp_path, name="digits")
    assert torch.bincount(train.labels).tolist() == [100] * 10
    assert len(test) == 797
    assert torch.bincount(test.labels).min() > 70
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    assert not rows(train) & rows(test)
    assert train.classes == test.classes == 10


def test_the_digits_are_those_that_sklearn_loads():
    from sklearn.datasets import load_digits

    table, digits = _digits_table(), load_digits()
    assert np.array_equal(table[:, :-1], digits.data)
    assert np.array_equal(table[:, -1], digits.target)


def test_the_catalogue_states_the_digits_mean_and_spread(tmp_path):
    train, _ = load(tmp_path, name="digits")
    pixels = train.images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(dataset("digits").mean, abs=1e-4)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(dataset("digits").std, abs=1e-4)


def test_a_part_has_the_first_classes_and_so_many_images_of_each(tmp_path):
    train, test = load(tmp_path, name="digits", classes=4, train_per_class=7, test_per_class=3)
    assert torch.bincount(train.labels).tolist() == [7] * 4
    assert torch.bincount(test.labels).tolist() == [3] * 4
    assert train.classes == 4
    whole, rest = load(tmp_path, name="digits")
    assert rows(train) < rows(whole)
    assert rows(test) < rows(rest)


def test_parts_are_fixed_and_nested(tmp_path):
    small, large = (load(tmp_path, name="digits", train_per_class=n)[0] for n in (5, 20))
    assert rows(small) < rows(large)
    assert torch.equal(small.images, load(tmp_path, name="digits", train_per_class=5)[0].images)
    alone = load(tmp_path, name="digits", classes=3, train_per_class=5)[0]
    assert rows(alone) < rows(small)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_are_named_with_what_to_do(name, tmp_path):
    with pytest.raises(BadInput, match=rf"{name}.*--data.*--download"):
        load(tmp_path, name=name)


def test_files_that_are_not_the_official_ones_are_refused_without_being_unpickled(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "hacked").encode() + b"'\ntR.")
    with pytest.raises(BadInput, match="not the official one"):
        load(tmp_path, name="cifar100")
    assert not (tmp_path / "hacked").exists()


def test_official_cifar100(real_data):
    train, test = load(real_data, name="cifar100")
    assert torch.bincount(train.labels).tolist() == [500] * 100
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert train.images.shape == (50000, 3, 32, 32)
    mean = (train.images[:1000].float() / 255).mean((0, 2, 3))
    assert mean.tolist() == pytest.approx(dataset("cifar100").mean, abs=0.02)


@pytest.fixture
def small_cifar(monkeypatch):
    """A CIFAR-100 of 200 + 100 images, so that archives are small."""
    import dataclasses

    small = dataclasses.replace(dataset("cifar100"), train=200, test=100)
    monkeypatch.setattr(data_specs, "dataset", lambda name: small)


def arrays():
    draw = np.random.default_rng(0)
    return {
        "train_images": draw.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(200) % 100,
        "test_images": draw.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(100),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_arrays_takes_the_place_of_the_files(small_cifar, tmp_path, save):
    content = arrays()
    save(tmp_path / "cifar100.npz", **content)
    train, test = load(tmp_path, name="cifar100")
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), content["train_images"])
    assert np.array_equal(test.labels.numpy(), content["test_labels"])
    assert train.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_images", np.zeros((199, 32, 32, 3), np.uint8), r"train_images is uint8 \(199, 32, 32, 3\), expected"),
        ("train_images", np.zeros((200, 3, 32, 32), np.uint8), r"expected uint8 \(200, 32, 32, 3\)"),
        ("test_images", np.zeros((100, 32, 32, 3)), "test_images is float64"),
        ("test_labels", np.zeros((100, 1), np.int64), r"test_labels is int64 \(100, 1\)"),
        ("test_labels", np.linspace(0, 1, 100), "test_labels is float64"),
        ("train_labels", np.arange(200), "train_labels goes from 0 to 199, not 0 to 99"),
        ("train_labels", np.arange(200) % 100 - 1, "goes from -1 to 98"),
        ("train_labels", np.array([None] * 200), "train_labels is object"),
        ("train_labels", None, "does not hold cifar100: .*train_labels"),
    ],
)
def test_an_archive_with_something_else_is_refused(small_cifar, tmp_path, key, value, message):
    content = {name: array for name, array in {**arrays(), key: value}.items() if array is not None}
    np.savez(tmp_path / "cifar100.npz", **content)
    with pytest.raises(BadInput, match=message):
        load(tmp_path, name="cifar100")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "one array"])
def test_a_damaged_archive_is_refused(small_cifar, tmp_path, damage):
    path = tmp_path / "cifar100.npz"
    np.savez_compressed(path, **arrays())
    content = path.read_bytes()
    if damage == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        middle = len(content) // 2
        damaged = {
            "empty": b"",
            "text": b"hello",
            "truncated": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }
        path.write_bytes(damaged[damage])
    with pytest.raises(BadInput, match="does not hold cifar100"):
        load(tmp_path, name="cifar100")


def test_what_is_missing_or_damaged_is_fetched_when_asked_for(tmp_path, monkeypatch):
    from pathlib import Path
    from runpy import run_path

    official = run_path(str(Path(__file__).parents[1] / "datafiles" / "official.py"))
    facts, files, _ = official["cifar100"]()
    archive = tmp_path / "there" / "set.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(official["tar_gz"](files, facts.folder))
    facts = official["published"](facts, archive.as_uri(), archive.read_bytes())
    monkeypatch.setattr(data_specs, "dataset", lambda name: facts)
    root, spec = tmp_path / "here", DatasetSpec(name="cifar100")
    with pytest.raises(BadInput, match="--download"):
        load_images(spec, root)
    assert not root.exists()
    assert len(load_images(spec, root, download=True)[0]) == 200
    (root / facts.folder / "train").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="--download"):
        load_images(spec, root)
    assert len(load_images(spec, root, download=True)[0]) == 200
    assert len(load_images(spec, root)[1]) == 100


@pytest.mark.parametrize(("stream", "kind"), [(False, ImageSet), (True, ImageFiles)])
def test_images_of_ones_own_are_decoded_once_or_stay_files(tmp_path, stream, kind):
    for part, level in (("train", 40), ("train", 80), ("test", 120)):
        for label in range(2):
            folder = tmp_path / "own" / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (level + label,) * 3).save(folder / f"{level}.png")
    source = ImageSource("folder", str(tmp_path / "own"), size=8, stream=stream)
    facts = facts_of(source)
    train, test = load_images(DatasetSpec(name="own", images=facts), tmp_path, sources={facts["sha256"]: source})
    assert isinstance(train, kind)
    assert isinstance(test, kind)
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (2, [0, 0, 1, 1], [0, 1])
    levels = [np.asarray(train.read(i))[0, 0, 0] if stream else train.images[i, 0, 0, 0] for i in range(len(train))]
    assert [int(level) for level in levels] == [40, 80, 41, 81]
