"""Data sets as arrays, read from whatever form of their files is there."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.checksum import unofficial
from kdbench.datafiles.formats import Arrays, read_cifar, read_stl10, read_svhn
from kdbench.datafiles.listener import Listener
from kdbench.datafiles.packed import read_packed
from kdbench.datafiles.split import Split, checked
from kdbench.datafiles.tinyimagenet import load_tinyimagenet
from kdbench.errors import BadInput


def read_splits(facts: Dataset, root: Path, listener: Listener | None = None) -> tuple[Split, Split]:
    """Training and test set of a data set that fits into memory.

    Raises BadInput where files are missing, not the official ones, or hold something else than they should.
    """
    if facts.missing(root):
        raise BadInput(facts.how_to_get(root))
    if facts.name == "tinyimagenet":
        return load_tinyimagenet(facts, root, listener)
    if facts.packed(root).is_file():
        return read_packed(facts, root)
    folder = root / facts.folder
    try:
        if unofficial(facts, root):
            raise BadInput(facts.how_to_get(root))
        train, test = _read(facts, folder)
    except OSError as error:
        raise BadInput(f"{facts.name} cannot be read from {folder}: {error.strerror or error}") from None
    return checked(facts, folder, "train", *train), checked(facts, folder, "test", *test)


def _read(facts: Dataset, folder: Path) -> tuple[Arrays, Arrays]:
    if facts.name == "stl10":
        train, test = (read_stl10(folder / f"{part}_X.bin", folder / f"{part}_y.bin") for part in ("train", "test"))
    elif facts.name == "svhn":
        train, test = (read_svhn(folder / f"{part}_32x32.mat") for part in ("train", "test"))
    else:
        parts = [[folder / file for file in facts.files if file.startswith("test") == last] for last in (False, True)]
        train, test = (read_cifar(paths) for paths in parts)
    return train, test
