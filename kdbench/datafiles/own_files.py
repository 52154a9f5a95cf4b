"""The files of images of one's own: class folders, or a table of files and labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from kdbench.catalogue.text import first_few, listed, nearest
from kdbench.errors import BadInput, reason_of


ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val", "valid", "validation")
"""The folders beside train/ that may hold the test images; the first that is there does."""


@dataclass(frozen=True)
class ImageSource:
    """Where images of one's own are, and how they are read.

    kind, path:      a folder with train/ and test/ (or val/), or of classes; a table of files; a NumPy file; a folder that
                     the package datasets has saved
    size:            the side in pixels; None: that of a NumPy file's arrays
    test_split:      the share of each class that is held out for tests, where the source has no test part
    skip_unreadable: leave files that cannot be decoded out, instead of refusing the set
    stream:          decode the files anew in each epoch, instead of once into memory; None: where memory is too small
    """

    kind: Literal["folder", "csv", "npz", "huggingface"]
    path: str
    size: int | None = None
    test_split: float | None = None
    skip_unreadable: bool = False
    stream: bool | None = None

    @property
    def key(self) -> str:
        """One text for the place and all options."""
        return json.dumps(astuple(self))

    @classmethod
    def of_key(cls, key: str) -> ImageSource:
        """The source that has this ``key``. Raises ValueError or TypeError for what is none."""
        return cls(*json.loads(key))


class Picture(NamedTuple):
    """A picture's file and its label. In a folder of datasets, a row is SPLIT/NUMBER below that folder."""

    file: Path
    label: int


@dataclass(frozen=True)
class Listed:
    """The files of a source and the names of its classes; ``test`` is None where a share of ``train`` is to be held out."""

    train: list[Picture]
    test: list[Picture] | None
    class_names: list[str]


def list_files(source: ImageSource) -> Listed:
    """The files of a folder or a table. Raises BadInput where they make no data set."""
    found = {"folder": _list_folder, "csv": list_table, "huggingface": _list_saved}[source.kind](source)
    if len(found.class_names) < 2:
        raise BadInput(f"{source.path}: has {listed(found.class_names)} for classes, and two are the least")
    twice = [a for a, b in pairwise(sorted(found.class_names, key=str.casefold)) if a.casefold() == b.casefold()]
    if twice:
        raise BadInput(f"{source.path}: two classes are called {first_few(twice)}, but for upper and lower case")
    if found.test is None and source.test_split is None:
        lacking = {"folder": "no folders train/ and test/", "csv": "no column 'split'", "huggingface": "no test split"}
        what = lacking[source.kind]
        raise BadInput(f"{source.path}: has {what}: say test_split: 0.2 to hold that share of each class out for tests")
    if found.test is not None and source.test_split is not None:
        raise BadInput(f"{source.path}: has test images of its own: leave test_split out")
    for part, pictures in (("training", found.train), ("test", found.test)):
        if pictures is not None and not pictures:
            raise BadInput(f"{source.path}: holds no {part} image ({', '.join(ENDINGS)})")
    empty = [name for label, name in enumerate(found.class_names) if all(each.label != label for each in found.train)]
    if empty:
        raise BadInput(f"{source.path}: no training image of the classes {first_few(empty)}")
    return found


def _list_folder(source: ImageSource) -> Listed:
    root = Path(source.path)
    if not root.is_dir():
        raise BadInput(f"{root}: is no folder")
    inner = _folders(root)
    test = next((name for name in TEST_FOLDERS if name in inner), None)
    if "train" not in inner or test is None:
        if "train" in inner:
            raise BadInput(
                f"{root}: has train/ and no {' or '.join(f'{each}/' for each in TEST_FOLDERS[:2])} beside it"
            )
        return Listed(_pictures(root, inner), None, inner)
    classes, others = _folders(root / "train"), _folders(root / test)
    if new := [name for name in others if name not in classes]:
        near = nearest(new[0], classes)
        hint = f". Did you mean '{near}'?" if near else ""
        raise BadInput(f"{root / test}: the classes {first_few(new)} are not in {root / 'train'}{hint}")
    return Listed(_pictures(root / "train", classes), _pictures(root / test, classes), classes)


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(root: Path, classes: Sequence[str]) -> list[Picture]:
    """The picture files below each class's folder, class by class, sorted by their path."""
    found = []
    for label, name in enumerate(classes):
        for folder, folders, names in os.walk(root / name):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            found += [Picture(Path(folder, each), label) for each in sorted(names) if _is_picture(each)]
    return found


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


_COLUMNS = {"file": ("file", "path", "image", "filename"), "label": ("label", "class"), "split": ("split", "set")}


def list_table(source: ImageSource) -> Listed:
    """The files of a CSV with a header: file, label and perhaps split (train, or test or val)."""
    table = Path(source.path)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table}: cannot be read: {reason_of(error)}") from None
    header = list(rows[0]) if rows else []
    columns = {key: next((name for name in names if name in header), None) for key, names in _COLUMNS.items()}
    if lacking := [key for key in ("file", "label") if columns[key] is None]:
        raise BadInput(
            f"{table}:1  has no column '{lacking[0]}'. Its columns: {listed([str(each) for each in header])}"
        )
    names = {str(row[columns["label"]]).strip() for row in rows}
    classes = sorted(names, key=int) if all(name.isdigit() for name in names) else sorted(names)
    halves: dict[bool, list[Picture]] = {False: [], True: []}
    for line, row in enumerate(rows, 2):
        split = str(row[columns["split"]]).strip().lower() if columns["split"] else "train"
        if split != "train" and split not in TEST_FOLDERS:
            raise BadInput(f"{table}:{line}  split is '{split}': write train or test")
        path = table.parent / str(row[columns["file"]])
        if not path.is_file():
            raise BadInput(f"{table}:{line}  {path}: no such file")
        halves[split != "train"].append(Picture(path, classes.index(str(row[columns["label"]]).strip())))
    return Listed(halves[False], halves[True] if columns["split"] else None, classes)


def _list_saved(source: ImageSource) -> Listed:
    from kdbench.datafiles.own_pictures import saved_splits  # which imports Pillow

    saved_splits.cache_clear()  # they may have been saved anew
    splits = saved_splits(Path(source.path))
    if "train" not in splits:
        raise BadInput(f"{source.path}: has the splits {listed(list(splits))}, and none is called train")
    test = next((name for name in TEST_FOLDERS if name in splits), None)
    halves = [
        [Picture(Path(source.path, name, str(row)), label) for row, label in enumerate(splits[name].labels)]
        for name in ("train", test)
        if name
    ]
    return Listed(halves[0], halves[1] if test else None, splits["train"].class_names)
