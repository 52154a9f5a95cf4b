"""Finished records, copied from folder to folder: the files that a record has, and nothing else that lies there."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import BadRecord
from kdbench.store.reading import LARGEST_METRICS
from kdbench.store.record import Record


FILES = ("spec.json", "metrics.jsonl", "weights.safetensors", "about.json", "result.json")


def check_copyable(record: Record) -> None:
    """Raise BadRecord unless a finished record's files are plain ones, of a size that they can have, and whole."""
    for path in _files(record.folder):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BadRecord(f"{path}: is a link or a device, not a plain file")
        if path != record.weights_file and found.st_size > LARGEST_METRICS:
            raise BadRecord(f"{path}: has {found.st_size:,} bytes, more than any record")
    record.check_weights()


def copy_record(record: Record, target: Path) -> None:
    """Copy a record whole or not at all. Raises OSError where that is impossible, BadRecord where the copy differs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{record.id}.{secrets.token_hex(6)}.tmp" / record.id
    try:
        temporary.mkdir(parents=True)
        for path in _files(record.folder):
            shutil.copyfile(path, temporary / path.name, follow_symlinks=False)
        check_copyable(Record(temporary))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for name in FILES if os.path.lexists(path := folder / name))
