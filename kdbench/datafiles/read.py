"""Reads a data set as arrays from whichever form of its files is present."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.download import ProgressReporter, checksum_mismatches
from kdbench.datafiles.folders import list_folders
from kdbench.datafiles.readers import Arrays, Split, checked, read_cifar, read_npz, read_stl10, read_svhn
from kdbench.datafiles.tinyimagenet import load_tinyimagenet
from kdbench.errors import BadInput, KdbenchError


def read_splits(facts: Dataset, root: Path, reporter: ProgressReporter | None = None) -> tuple[Split, Split]:
    """Training and test set of a data set that fits into memory.

    Raises BadInput where files are missing, not the official ones, or hold something else than they should.
    """
    if facts.missing(root):
        raise BadInput(facts.how_to_get(root))
    if facts.name == "tinyimagenet":
        return load_tinyimagenet(facts, root, reporter)
    if facts.npz(root).is_file():
        return read_npz(facts, root)
    folder = root / facts.folder
    try:
        if checksum_mismatches(facts, root):
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


def prepare(facts: Dataset, root: Path, reporter: ProgressReporter) -> tuple[int, int]:
    """Build what is kept decoded, and check files and counts. Returns how many training and test images there are.

    Raises BadInput where they are not what they should be, KdbenchError where nothing can be written.
    """
    if not facts.files:
        return facts.train, facts.test
    if facts.streamed:
        files = list_folders(facts, root)
        return len(files[0].names), len(files[1].names)
    train, test = read_splits(facts, root, reporter)
    if facts.name == "tinyimagenet" and not facts.npz(root).is_file():
        raise KdbenchError(f"{facts.npz(root)} could not be written: every run would decode the images again")
    return len(train.labels), len(test.labels)
