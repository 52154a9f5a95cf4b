"""Small data sets in exactly the official layouts and formats, and the catalogue entries that go with them."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
from PIL import Image

from kdbench.catalogue.datasets import Archive, dataset


def md5(content):
    return hashlib.md5(content).hexdigest()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def with_sums(name, files, **changes):
    """The catalogue's entry of a data set, with the sums of these files, which are below its folder."""
    return replace(dataset(name), files={file: md5(content) for file, content in files.items()}, **changes)


def write(root, facts, files):
    for file, content in files.items():
        path = root / facts.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def cifar100():
    """(entry, files, images [N, H, W, 3] and labels of both halves): 200 training and 100 test images."""
    halves = {
        "train": (pixels(200, 32, 32, 3), np.arange(200) % 100),
        "test": (pixels(100, 32, 32, 3, seed=1), np.arange(100)),
    }
    files = {
        part: pickle.dumps(
            {
                "data": images.transpose(0, 3, 1, 2).reshape(-1, 3072),
                "fine_labels": labels.tolist(),
                "coarse_labels": [0],
            }
        )
        for part, (images, labels) in halves.items()
    }
    return with_sums("cifar100", files, train=200, test=100), files, halves


def cifar10():
    """Five batches of 10 training images and 10 test images."""
    train, test = pixels(50, 32, 32, 3), pixels(10, 32, 32, 3, seed=1)
    batches = {f"data_batch_{n + 1}": train[10 * n : 10 * n + 10] for n in range(5)} | {"test_batch": test}
    files = {
        name: pickle.dumps({"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": list(range(10))})
        for name, images in batches.items()
    }
    return (
        with_sums("cifar10", files, train=50, test=10),
        files,
        {"train": (train, np.arange(50) % 10), "test": (test, np.arange(10))},
    )


def stl10():
    """20 training and 10 test images, written column by column, with labels 1 to 10."""
    halves = {
        "train": (pixels(20, 96, 96, 3), np.arange(20) % 10),
        "test": (pixels(10, 96, 96, 3, seed=1), np.arange(10)),
    }
    files = {}
    for part, (images, labels) in halves.items():
        columns = [image[:, x, channel] for image in images for channel in range(3) for x in range(96)]
        files[f"{part}_X.bin"] = np.concatenate(columns).tobytes()
        files[f"{part}_y.bin"] = bytes(int(label) + 1 for label in labels)
    return with_sums("stl10", files, train=20, test=10), files, halves


def svhn():
    """20 training and 10 test images; the digit 0 has the label 10."""
    from scipy.io import savemat

    halves = {
        "train": (pixels(20, 32, 32, 3), np.arange(20) % 10),
        "test": (pixels(10, 32, 32, 3, seed=1), np.arange(10)),
    }
    files = {}
    for part, (images, labels) in halves.items():
        file = io.BytesIO()
        stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(file, {"X": np.stack(list(images), axis=-1), "y": stored}, do_compression=True)
        files[f"{part}_32x32.mat"] = file.getvalue()
    return with_sums("svhn", files, train=20, test=10), files, halves


def jpeg(colour, size=(64, 64), mode="RGB", kind="JPEG"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


WNIDS = ["n30", "n10", "n20"]
"""Not in order, as in wnids.txt."""


def tiny():
    """3 classes of 4 training and 2 test images, each of one colour: (10 × its label, 200, its number); one is grey."""
    files = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n10\tthing",
        "test/images/test_0.JPEG": b"unlabelled",
    }
    rows = []
    for label, name in enumerate(sorted(WNIDS)):
        files[f"train/{name}/{name}_boxes.txt"] = b"boxes"
        for n in range(4):
            files[f"train/{name}/images/{name}_{n}.JPEG"] = jpeg((60 * label, 200, 40 * n))
        for n in range(2):
            file = f"val_{2 * (2 - label) + n}.JPEG"
            files[f"val/images/{file}"] = jpeg((60 * label, 90, 40 * n))
            rows.append(f"{file}\t{name}\t0\t0\t9\t9")
    files["train/n10/images/n10_3.JPEG"] = jpeg(77, mode="L")
    files["val/val_annotations.txt"] = "\n".join([*sorted(rows), ""]).encode()
    return replace(dataset("tinyimagenet"), classes=3, train=12, test=6), files


IMAGENET_CLASSES = ["n01", "n02", "n03"]


def imagenet():
    """3 classes of 6 training and 2 test images of many sizes and forms: JPEG, grey, CMYK, PNG."""
    files = {}
    draw = np.random.default_rng(3)
    for part, each in (("train", 6), ("val", 2)):
        for name in IMAGENET_CLASSES:
            for n in range(each):
                width, height = draw.integers(40, 90, 2)
                image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
                mode, kind = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")][n % 4]
                file = io.BytesIO()
                image.convert(mode).save(file, kind)
                files[f"{part}/{name}/{name}_{n}.JPEG"] = file.getvalue()
    return replace(dataset("imagenet"), classes=3, train=18, test=6), files


def tar_gz(files, folder=""):
    """An archive of these files, below ``folder``."""
    file = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zipped(files, folder=""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}" if folder else name, content)
    return file.getvalue()


def published(facts, url, content):
    """The entry, with this archive as the one that it comes from."""
    return replace(facts, archives=(Archive(url, md5(content)),))
