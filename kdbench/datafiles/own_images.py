"""Images of one's own: class folders, a table of files, or one NumPy file, read into arrays and known by their content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdbench.catalogue.text import listed
from kdbench.datafiles.folders import LARGEST
from kdbench.datafiles.own_files import ImageSource, Picture, list_files, list_table
from kdbench.datafiles.readers import Split
from kdbench.errors import BadInput, reason_of
from kdbench.files import cached, remember, remembered, write_atomically


MOST_BYTES = 8 * 2**30
"""Of all decoded images together, which are held in memory."""
RULE = 1
"""The number of the rule by which pictures become pixels. Another rule would give other data sets."""


@dataclass(frozen=True)
class OwnImages:
    """A set as it was read: its arrays, and the ``facts`` that a spec holds.

    ``facts`` are sha256 (of the content), classes, size, train and test (counts), mean, std and class_names; ``skipped``
    the files that could not be decoded.
    """

    train: Split
    test: Split
    facts: dict[str, Any]
    skipped: list[str]


def facts_of(source: ImageSource) -> dict[str, Any]:
    """What a spec holds of a set, from the user's cache where no file has changed. Raises BadInput for what is no set."""
    signature = _signature(source)
    known = remembered("images", signature)
    if known is None:
        known = read(source).facts
        remember("images", signature, known)
    return dict(known)


def load(sha256: str, source: ImageSource | None) -> tuple[Split, Split]:
    """Training and test set by the hash of their content, decoded once and kept in the user's cache.

    Raises BadInput where the source is gone, or has other images now.
    """
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(_arrays(sha256)) as file:
        splits = [Split(file[f"{half}_images"], file[f"{half}_labels"]) for half in ("train", "test")]
        return splits[0], splits[1]
    if source is None:
        raise BadInput(f"the images {sha256[:12]}… are not here: run the suite that names their folder")
    found = read(source)
    if found.facts["sha256"] != sha256:
        raise BadInput(f"{source.path}: the images have changed since the suite was read. Run the same command again")
    return found.train, found.test


def read(source: ImageSource) -> OwnImages:
    """Read and decode a set, and keep its arrays in the user's cache. Raises BadInput, naming each file, for what is none."""
    if not os.path.exists(source.path):
        raise BadInput(f"{source.path}: no such {'folder' if source.kind == 'folder' else 'file'}")
    found = _read_npz(source) if source.kind == "npz" else _read_pictures(source)
    with suppress(OSError):
        arrays = {
            f"{half}_{what}": getattr(getattr(found, half), what)
            for half in ("train", "test")
            for what in ("images", "labels")
        }
        write_atomically(_arrays(found.facts["sha256"]), lambda file: np.savez(file, **arrays))
    return found


def _arrays(sha256: str) -> Path:
    return cached("images", f"arrays {RULE} {sha256}").with_suffix(".npz")


def _signature(source: ImageSource) -> str:
    """The place, the options, and name, size and time of each file."""
    digest = hashlib.sha256(f"{RULE} {source.key}\n".encode())
    try:
        for path in _files(source) if os.path.exists(source.path) else ():
            state = os.stat(path)
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    return digest.hexdigest()


def _files(source: ImageSource) -> Iterator[str]:
    if source.kind in ("folder", "huggingface"):
        for folder, folders, names in os.walk(source.path):
            folders.sort()
            yield from (os.path.join(folder, name) for name in sorted(names))
        return
    yield source.path
    if source.kind == "csv":
        listing = list_table(source)
        yield from (str(each.file) for each in (*listing.train, *(listing.test or ())))


def _read_pictures(source: ImageSource) -> OwnImages:
    if source.size is None:
        raise BadInput(f"{source.path}: say the side of the images in pixels, such as size: 32")
    found = list_files(source)
    everything = [*found.train, *(found.test or ())]
    _check_memory(source, len(everything), source.size)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        decoded = list(pool.map(lambda picture: _decoded(picture, source.size or 0), everything))
    wrong = [str(content) for content, _ in decoded if isinstance(content, str)]
    if wrong and not source.skip_unreadable:
        raise BadInput(
            f"{source.path}: {len(wrong)} files cannot be read: {'; '.join(wrong[:5])}. Replace them, or say "
            "skip_unreadable: true to leave them out"
        )
    rows = [(each.label, sha, pixels) for each, (pixels, sha) in zip(everything, decoded, strict=True)]
    train, test = rows[: len(found.train)], rows[len(found.train) :]
    if found.test is None:
        train, test = _held_out(train, len(found.class_names), source.test_split or 0.0)
    halves = [[row for row in half if not isinstance(row[2], str)] for half in (train, test)]
    content = [[(label, sha) for label, sha, _ in half] for half in halves]
    splits = [Split(np.stack([row[2] for row in half]), np.array([row[0] for row in half])) for half in halves]
    return _set(source, splits[0], splits[1], found.class_names, json.dumps(content), wrong)


def _held_out(rows: list[Any], classes: int, share: float) -> tuple[list[Any], list[Any]]:
    """Hold a share of each class out: the files whose hashes come first, whatever their names and places are."""
    test: set[int] = set()
    for label in range(classes):
        members = sorted((row[1], place) for place, row in enumerate(rows) if row[0] == label)
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise BadInput(
                f"test_split {share} of {len(members)} images of a class leaves none to train or none to test on"
            )
        test |= {place for _, place in members[:count]}
    return [row for place, row in enumerate(rows) if place not in test], [rows[place] for place in sorted(test)]


def _decoded(picture: Picture, size: int) -> tuple[NDArray[np.uint8] | str, str]:
    """A picture's pixels [3, size, size], or why it has none; and the hash of its file."""
    sha256 = ""
    try:
        content = picture.file.read_bytes() if isinstance(picture.file, Path) else picture.file
        sha256 = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            return np.ascontiguousarray(np.asarray(square(image, size)).transpose(2, 0, 1)), sha256
    except Exception as error:  # what is no picture makes the decoders raise almost anything
        return f"{picture.file if isinstance(picture.file, Path) else 'a row'}: {reason_of(error)}", sha256


def square(image: Image.Image, size: int) -> Image.Image:
    """A picture as ``size`` × ``size`` pixels in RGB.

    It is turned as EXIF says; transparent parts become white, grey three equal channels, 16 bits 8. The shorter side is
    resized to ``size`` (bicubic), and the centre is taken.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


_ARRAYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("val_images", "val_labels")),
    "": (("images", "labels"), ("x", "y")),
}


def _read_npz(source: ImageSource) -> OwnImages:
    """A NumPy file with images [N, H, W], [N, H, W, 1] or [N, H, W, 3] of uint8, and labels [N] from 0."""
    try:
        with np.load(source.path) as file:
            halves = [
                pair
                for names in _ARRAYS.values()
                if (pair := next(((file[a], file[b]) for a, b in names if a in file and b in file), None))
            ]
            there = listed(list(file))
            names = [str(name) for name in file["class_names"]] if "class_names" in file else []
    except Exception as error:  # bytes that are no such file make NumPy raise almost anything
        raise BadInput(f"{source.path}: is no NumPy file of images: {reason_of(error)}") from None
    if not halves:
        raise BadInput(f"{source.path}: holds no train_images and train_labels. It has {there}")
    if len(halves) == 1 and source.test_split is None:
        raise BadInput(f"{source.path}: has no test_images and test_labels: say test_split: 0.2")
    arrays = [_checked(source, images, labels) for images, labels in halves[:2]]
    if len(arrays) == 1:
        images, labels = arrays[0]
        rows = [
            (int(label), hashlib.sha256(image.tobytes()).hexdigest(), image)
            for image, label in zip(images, labels, strict=True)
        ]
        split = _held_out(rows, int(labels.max()) + 1, source.test_split or 0.0)
        arrays = [(np.stack([row[2] for row in half]), np.array([row[0] for row in half])) for half in split]
    splits = [Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels) for images, labels in arrays]
    classes = int(splits[0].labels.max()) + 1
    if splits[1].labels.max() >= classes or (names and len(names) != classes):
        raise BadInput(
            f"{source.path}: its training labels are of {classes} classes, and its test labels or names of others"
        )
    content = hashlib.sha256(b"".join(each.images.tobytes() + each.labels.tobytes() for each in splits)).hexdigest()
    return _set(source, splits[0], splits[1], names or [str(label) for label in range(classes)], content, [])


def _checked(
    source: ImageSource, images: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, H, H, 3] and labels [N] of one half. Raises BadInput for what is none."""
    labels = labels.reshape(len(labels), -1)
    if images.ndim == 3:
        images = images[..., None]
    good = images.ndim == 4 and images.shape[3] in (1, 3) and images.dtype == np.uint8
    if not good or labels.shape != (len(images), 1) or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise BadInput(
            f"{source.path}: holds images {images.dtype} {[*images.shape]} and labels {labels.dtype} {[*labels.shape]}; "
            "images are uint8 [N, H, W] or [N, H, W, 3], labels whole numbers [N] from 0"
        )
    size = source.size or images.shape[1]
    _check_memory(source, len(images), size)
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
    if images.shape[1:3] != (size, size):
        images = np.stack([np.asarray(square(Image.fromarray(image), size)) for image in images])
    return np.ascontiguousarray(images), labels[:, 0].astype(np.int64)


def _check_memory(source: ImageSource, count: int, size: int) -> None:
    if count * size * size * 3 > MOST_BYTES:
        raise BadInput(
            f"{source.path}: {count:,} images of {size} × {size} pixels do not fit into {MOST_BYTES >> 30} GiB: take a "
            "smaller size, or fewer images"
        )


def _set(
    source: ImageSource, train: Split, test: Split, names: Sequence[str], content: str, skipped: list[str]
) -> OwnImages:
    size = train.images.shape[2]
    digest = hashlib.sha256(json.dumps([RULE, size, list(names), content]).encode()).hexdigest()
    mean, std = _moments(train.images)
    facts = {
        "sha256": digest,
        "classes": len(names),
        "size": size,
        "train": len(train.labels),
        "test": len(test.labels),
        "mean": mean,
        "std": std,
        "class_names": list(names),
    }
    return OwnImages(train, test, facts, skipped)


def _moments(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel's values from 0 to 1, to four digits."""
    counts = [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(3)]
    values = np.arange(256) / 255
    means = [float((each * values).sum() / each.sum()) for each in counts]
    deviations = [
        float(np.sqrt((each * (values - mean) ** 2).sum() / each.sum()))
        for each, mean in zip(counts, means, strict=True)
    ]
    return [round(mean, 4) for mean in means], [max(round(each, 4), 1e-4) for each in deviations]


def contact_sheet(found: OwnImages, count: int = 24) -> Image.Image:
    """Training pictures of all classes by turns, in rows of six, each at least 64 pixels wide."""
    by_class: list[NDArray[np.int64]] = [
        np.flatnonzero(found.train.labels == label) for label in range(found.facts["classes"])
    ]
    longest = max(map(len, by_class))
    turns = [int(members[turn]) for turn in range(longest) for members in by_class if turn < len(members)][:count]
    side = max(64, found.facts["size"])
    sheet = Image.new("RGB", (6 * side, -(-len(turns) // 6) * side), "white")
    for place, index in enumerate(turns):
        picture = Image.fromarray(found.train.images[index].transpose(1, 2, 0)).resize(
            (side, side), Image.Resampling.NEAREST
        )
        sheet.paste(picture, (place % 6 * side, place // 6 * side))
    return sheet
