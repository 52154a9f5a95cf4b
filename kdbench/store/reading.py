"""Defensive reading of the results directory: any content gives a value or a BadRecord, in bounded time."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from kdbench.errors import BadRecord, UnreadableRecord
from kdbench.files import file_hash


LARGEST, LARGEST_METRICS, MOST_LINES = 4 * 2**20, 32 * 2**20, 10**6
"""Bytes of a file, and lines of metrics, that are read: far more than kdbench writes, and little enough for memory."""

_LARGE = 2**30
"""Bytes that are more than the metrics of any training, and take a second to hash."""


def read(path: str, largest: int = LARGEST) -> bytes:
    """A file's content. Thousands of small files are read for a report: without a file object, in half the time.

    Raises BadRecord for what is no file, and for one that is larger than any that kdbench writes.
    """
    try:
        return _read(path, largest)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return _read(path, largest)  # replaced through another machine while this one had it open


def _read(path: str, largest: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe would let one wait for ever
    try:
        status = os.fstat(descriptor)
        _refuse_special(path, status)
        if status.st_size > largest:
            raise BadRecord(f"{path}: is far larger than what was stored")
        content = b""
        while more := os.read(descriptor, max(65536, status.st_size)):
            content += more
        return content
    finally:
        os.close(descriptor)


def _refuse_special(path: Path | str, status: os.stat_result) -> None:
    """Raise BadRecord for a folder, pipe or device."""
    if not stat.S_ISREG(status.st_mode):
        raise BadRecord(f"{path}: is " + ("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"))


def check_size(path: Path) -> None:
    """Raise BadRecord unless a file is safetensors and as long as its header says: quick, whatever its size."""
    try:
        _refuse_special(path, path.stat())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = mapping(file.read(min(length, LARGEST)))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError, LookupError):
        raise BadRecord(f"{path}: is not the file that was stored (its header cannot be read)") from None
    if path.stat().st_size != 8 + length + max(ends, default=0):
        raise BadRecord(f"{path}: is not the file that was stored (its length has changed)")


def differences(path: Path, sha256: str) -> Iterator[BadRecord]:
    """Check a file against its stored hash; yields what is wrong."""
    try:
        _refuse_special(path, path.stat())
        if path.stat().st_size > _LARGE:  # what is not even as long as it was need not be read
            if path.suffix != ".safetensors":
                raise BadRecord(f"{path}: is far larger than what was stored")
            check_size(path)
        if file_hash(path) != sha256:
            yield BadRecord(f"{path}: is not the file that was stored (its SHA-256 has changed)")
    except FileNotFoundError:
        yield BadRecord(f"{path}: is missing")
    except OSError as error:
        yield unreadable(path, error)
    except BadRecord as error:
        yield error


def unreadable(path: Path, error: OSError) -> UnreadableRecord:
    """The error for a file that the system does not let kdbench read."""
    return UnreadableRecord(f"{path}: cannot be read: {error.strerror or error}")


def parse(text: bytes) -> Any:
    """Parse JSON. Raises ValueError, also for NaN and Infinity; numbers may still be infinite (1e400)."""
    return from_json(text, allow_inf_nan=False)


def stored_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that was stored. Raises BadRecord, also where it is missing."""
    try:
        return mapping(read(str(path)))
    except FileNotFoundError:
        raise BadRecord(f"{path}: is missing") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise BadRecord(f"{path}: is not what was stored ({error})") from None


def read_mapping(path: str) -> dict[str, Any]:
    """Read a JSON object from a file; {} if there is none."""
    try:
        return mapping(read(path))
    except (OSError, BadRecord, ValueError):
        return {}


def mapping(text: bytes) -> dict[str, Any]:
    """The JSON object that a text holds, or {} for other values. Raises ValueError."""
    value = parse(text)
    return value if isinstance(value, dict) else {}


def some_lines(lines: list[bytes], every: int) -> list[bytes]:
    """The first line, those whose epoch ``every`` divides, and the last. Epochs follow each other from line to line."""
    if len(lines) < 2:
        return lines
    first = (read_epoch(lines[0]) or {}).get("epoch")
    start = -first % every if isinstance(first, int) else 0
    return [lines[0], *lines[start or every : -1 : every], lines[-1]]


def read_epoch(line: bytes) -> dict[str, Any] | None:
    """Parse one line of metrics; None if it is invalid."""
    try:
        value = parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
