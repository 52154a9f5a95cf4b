"""Images of one's own: class folders, a table of files, or one NumPy file, known by their content.

They are decoded once into arrays, or, where these would be too large, stay files that are decoded in each epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdbench.catalogue.text import listed
from kdbench.datafiles.folders import Listing
from kdbench.datafiles.own_files import ImageSource, Picture, list_files, list_table
from kdbench.datafiles.own_pictures import content_of, decode, read_picture, square
from kdbench.datafiles.readers import Split
from kdbench.errors import BadInput, reason_of
from kdbench.files import cached, remember, remembered, write_atomically


log = logging.getLogger(__name__)

MOST_BYTES = 8 * 2**30
"""Of all decoded images together, which are held in memory. Files of more stay files."""
RULE = 1
"""The number of the rule by which pictures become pixels. Another rule would give other data sets."""


@dataclass(frozen=True)
class OwnImages:
    """A set as it was read: its arrays, or the list of its files, and the ``facts`` that a spec holds.

    ``facts`` are sha256 (of the content), classes, size, train and test (counts), mean, std, class_names and streamed;
    ``skipped`` the files that could not be decoded.
    """

    source: ImageSource
    train: Split | Listing
    test: Split | Listing
    facts: dict[str, Any]
    skipped: list[str]

    def picture(self, index: int) -> Image.Image:
        """A training picture, ``size`` × ``size`` pixels in RGB."""
        if isinstance(self.train, Split):
            return Image.fromarray(self.train.images[index].transpose(1, 2, 0))
        file = self.train.folder / os.fsdecode(self.train.names[index])
        return square(read_picture(self.source.kind, file), self.facts["size"])


def facts_of(source: ImageSource) -> dict[str, Any]:
    """What a spec holds of a set, from the user's cache where no file has changed. Raises BadInput for what is no set."""
    return dict(remembered("images", _signature(source)) or read(source).facts)


def load(sha256: str, source: ImageSource | None) -> tuple[Split, Split]:
    """Training and test set by the hash of their content, decoded once and kept in the user's cache.

    Raises BadInput where the source is gone, or has other images now.
    """
    halves = _kept(_arrays(sha256), ("images", "labels"))
    if halves:
        return Split(**halves[0]), Split(**halves[1])
    found = _unchanged(sha256, source and replace(source, stream=False))
    return cast("tuple[Split, Split]", (found.train, found.test))


def list_streamed(sha256: str, source: ImageSource | None) -> tuple[Listing, Listing]:
    """The files of the training and the test set, by the hash of their content.

    Raises BadInput where the source is gone, or has other images now.
    """
    if source:
        signature = _signature(source)
        known, halves = remembered("images", signature), _kept(_index(signature), ("names", "labels"))
        if known and known["sha256"] == sha256 and halves:
            return Listing(_root(source), **halves[0]), Listing(_root(source), **halves[1])
    found = _unchanged(sha256, source and replace(source, stream=True))
    return cast("tuple[Listing, Listing]", (found.train, found.test))


def _unchanged(sha256: str, source: ImageSource | None) -> OwnImages:
    if source is None:
        raise BadInput(f"the images {sha256[:12]}… are not here: run the suite that names their folder")
    found = read(source)
    if found.facts["sha256"] != sha256:
        raise BadInput(
            f"{source.path}: the images have changed since the suite was read: run it again, or put the former back"
        )
    return found


def read(source: ImageSource) -> OwnImages:
    """Read and decode a set; its facts and its arrays, or the list of its files, are kept in the user's cache.

    Raises BadInput, naming each file, for what is none.
    """
    if not os.path.exists(source.path):
        raise BadInput(f"{source.path}: no such {'folder' if source.kind == 'folder' else 'file'}")
    signature = _signature(source)
    found = _read_npz(source) if source.kind == "npz" else _read_pictures(source)
    remember("images", signature, found.facts)
    streamed = found.facts["streamed"]
    arrays = {
        f"{half}_{what}": getattr(getattr(found, half), what)
        for half in ("train", "test")
        for what in ("names" if streamed else "images", "labels")
    }
    with suppress(OSError):
        path = _index(signature) if streamed else _arrays(found.facts["sha256"])
        write_atomically(path, lambda file: np.savez(file, **arrays))
    return found


def _kept(path: Path, fields: Sequence[str]) -> list[dict[str, Any]] | None:
    """The fields of both halves, as ``read`` has kept them; None where it has not."""
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(path) as file:
        return [{field: file[f"{half}_{field}"] for field in fields} for half in ("train", "test")]
    return None


def _index(signature: str) -> Path:
    return cached("images", f"files {signature}").with_suffix(".npz")


def _root(source: ImageSource) -> Path:
    """The folder from which on the files of a source are named."""
    return Path(source.path).parent if source.kind == "csv" else Path(source.path)


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
    too_large = len(everything) * source.size**2 * 3 > MOST_BYTES
    streamed = too_large if source.stream is None else source.stream
    if too_large and not streamed:
        raise BadInput(f"{source.path}: {_too_large(len(everything), source.size)}: leave stream: false out")
    decoded = _decode(everything, partial(_measured if streamed else _decoded, kind=source.kind, size=source.size))
    wrong = [content for content, _ in decoded if isinstance(content, str)]
    if wrong and not source.skip_unreadable:
        raise BadInput(
            f"{source.path}: {len(wrong)} files cannot be read: {'; '.join(wrong[:5])}. Replace them, or say "
            "skip_unreadable: true to leave them out"
        )
    rows = [_Row(file, label, *seen) for (file, label), seen in zip(everything, decoded, strict=True)]
    train, test = rows[: len(found.train)], rows[len(found.train) :]
    if found.test is None:
        train, test = _held_out(train, len(found.class_names), source.test_split or 0.0)
    halves = [[row for row in half if not isinstance(row.content, str)] for half in (train, test)]
    content = json.dumps([[(row.label, row.sha256) for row in half] for half in halves])
    labels = [np.array([row.label for row in half]) for half in halves]
    parts: list[Any]
    if streamed:
        sums = np.sum([row.content for row in halves[0]], axis=0)
        root = _root(source)
        names = [np.array([os.fsencode(os.path.relpath(row.file, root)) for row in half]) for half in halves]
        parts = [Listing(root, *part) for part in zip(names, labels, strict=True)]
    else:
        parts = [Split(np.stack([row.content for row in half]), own) for half, own in zip(halves, labels, strict=True)]
        sums = _sums(parts[0].images)
    facts = _facts(source.size, labels, found.class_names, content, sums, streamed=streamed)
    return OwnImages(source, parts[0], parts[1], facts, wrong)


class _Row(NamedTuple):
    """A picture's file, its label, what was seen in it or why it cannot be decoded, and the hash of its file."""

    file: Path
    label: int
    content: Any
    sha256: str


Decoded = tuple[NDArray[Any] | str, str]
CHUNK = 4096
"""So many files are read between two lines of progress."""


def _decode(pictures: Sequence[Picture], look: Callable[[Picture], Decoded]) -> list[Decoded]:
    """Look at all pictures, several at a time."""
    found: list[Decoded] = []
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(pictures), CHUNK):
            if start:
                log.info("%s of %s images are read", f"{start:,}", f"{len(pictures):,}")
            found += pool.map(look, pictures[start : start + CHUNK])
    return found


def _held_out(rows: list[_Row], classes: int, share: float) -> tuple[list[_Row], list[_Row]]:
    """Hold a share of each class out: the files whose hashes come first, whatever their names and places are."""
    test: set[int] = set()
    for label in range(classes):
        members = sorted((row.sha256, place) for place, row in enumerate(rows) if row.label == label)
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise BadInput(
                f"test_split {share} of {len(members)} images of a class leaves none to train or none to test on"
            )
        test |= {place for _, place in members[:count]}
    return [row for place, row in enumerate(rows) if place not in test], [rows[place] for place in sorted(test)]


def _decoded(picture: Picture, kind: str, size: int) -> Decoded:
    """A picture's pixels [3, size, size], or why it has none; and the hash of its file."""
    sha256 = ""
    try:
        content = content_of(kind, picture.file)
        sha256 = hashlib.sha256(content).hexdigest()
        image = square(decode(content), size)
    except Exception as error:  # what is no picture makes the decoders raise almost anything
        return f"{picture.file}: {reason_of(error)}", sha256
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)), sha256


def _measured(picture: Picture, kind: str, size: int) -> Decoded:
    """The sums over a picture's pixels, or why it has none; and the hash of its file."""
    pixels, sha256 = _decoded(picture, kind, size)
    return pixels if isinstance(pixels, str) else _sums(pixels[None]), sha256


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
            _Row(Path(), int(label), image, hashlib.sha256(image.tobytes()).hexdigest())
            for image, label in zip(images, labels, strict=True)
        ]
        split = _held_out(rows, int(labels.max()) + 1, source.test_split or 0.0)
        arrays = [(np.stack([row.content for row in half]), np.array([row.label for row in half])) for half in split]
    splits = [Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels) for images, labels in arrays]
    classes = int(splits[0].labels.max()) + 1
    if splits[1].labels.max() >= classes or (names and len(names) != classes):
        raise BadInput(
            f"{source.path}: its training labels are of {classes} classes, and its test labels or names of others"
        )
    content = hashlib.sha256(b"".join(each.images.tobytes() + each.labels.tobytes() for each in splits)).hexdigest()
    names = names or [str(label) for label in range(classes)]
    size = splits[0].images.shape[2]
    facts = _facts(size, [each.labels for each in splits], names, content, _sums(splits[0].images), streamed=False)
    return OwnImages(source, splits[0], splits[1], facts, [])


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
    if len(images) * size**2 * 3 > MOST_BYTES:
        raise BadInput(f"{source.path}: {_too_large(len(images), size)}: save them as files, which are streamed")
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
    if images.shape[1:3] != (size, size):
        images = np.stack([np.asarray(square(Image.fromarray(image), size)) for image in images])
    return np.ascontiguousarray(images), labels[:, 0].astype(np.int64)


def _too_large(count: int, size: int) -> str:
    return f"{count:,} images of {size} × {size} pixels do not fit into {MOST_BYTES >> 30} GiB"


def _facts(
    size: int,
    labels: Sequence[NDArray[np.int64]],
    names: Sequence[str],
    content: str,
    sums: NDArray[np.int64],
    *,
    streamed: bool,
) -> dict[str, Any]:
    """The facts of a set, of the labels of both halves and the sums over the training images."""
    mean, std = _moments(sums, len(labels[0]) * size**2)
    return {
        "sha256": hashlib.sha256(json.dumps([RULE, size, list(names), content]).encode()).hexdigest(),
        "classes": len(names),
        "size": size,
        "train": len(labels[0]),
        "test": len(labels[1]),
        "mean": mean,
        "std": std,
        "class_names": list(names),
        "streamed": streamed,
    }


def _sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sums of the values and of their squares [2, 3] over images [N, 3, H, W]."""
    counts = [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(3)]
    values = np.arange(256)
    return np.array([[(each * values**power).sum() for each in counts] for power in (1, 2)])


def _moments(sums: NDArray[np.int64], pixels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel's values from 0 to 1, to four digits."""
    first, second = sums / pixels
    deviations = np.sqrt(np.maximum(second - first**2, 0.0))
    return [round(each / 255, 4) for each in first.tolist()], [
        max(round(each / 255, 4), 1e-4) for each in deviations.tolist()
    ]


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
        picture = found.picture(index).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (place % 6 * side, place // 6 * side))
    return sheet
