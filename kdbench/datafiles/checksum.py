"""MD5 sums, by which the data sets' authors name their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdbench.catalogue.datasets import Dataset


def md5_of(path: Path) -> str:
    """The MD5 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unofficial(facts: Dataset, root: Path) -> list[str]:
    """Those of a data set's files that are there and whose sum is not the official one."""
    sums = {file: md5 for file, md5 in facts.files.items() if md5 and (root / facts.folder / file).is_file()}
    return [file for file, md5 in sums.items() if md5_of(root / facts.folder / file) != md5]
