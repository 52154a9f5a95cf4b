"""A data set made ready to train on, and all of it looked at."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.folders import list_folders
from kdbench.datafiles.listener import Listener
from kdbench.datafiles.read import read_splits
from kdbench.errors import KdbenchError


def prepare(facts: Dataset, root: Path, listener: Listener) -> tuple[int, int]:
    """Build what is kept decoded, and check files and counts. Returns how many training and test images there are.

    Raises BadInput where they are not what they should be, KdbenchError where nothing can be written.
    """
    if not facts.files:
        return facts.train, facts.test
    if facts.streamed:
        files = list_folders(facts, root)
        return len(files[0].names), len(files[1].names)
    train, test = read_splits(facts, root, listener)
    if facts.name == "tinyimagenet" and not facts.packed(root).is_file():
        raise KdbenchError(f"{facts.packed(root)} could not be written: every run would decode the images again")
    return len(train.labels), len(test.labels)
