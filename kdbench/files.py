"""Atomic file writes, content hashes, canonical JSON and a cache of what takes long to find out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file in the folder of ``path``, flush it to disk and rename it to ``path``.

    Whoever reads ``path`` sees the old content or the new one. Raises OSError (disk full, no permission) with the old
    content untouched and no temporary file left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.tmp"
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, in the order of the keys given."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def quarantine(path: Path) -> Path:
    """Rename a damaged file so that it is not read again but not lost either. Returns the new name."""
    for number in range(1, 10_000):
        target = path.with_name(f"{path.name}.damaged-{number}")
        if not target.exists():
            path.rename(target)
            return target
    raise OSError(f"{path}: too many damaged copies")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk if the file system supports it; the file itself is already flushed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


_UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
"""Errors of systems that cannot flush folders: some FUSE and SMB mounts, folders without read permission."""


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's content, in hexadecimal. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def remembered(kind: str, key: str) -> Any | None:
    """What ``remember`` kept in the user's cache; None if nothing, or nothing that can be read."""
    try:
        return json.loads(cached(kind, key).read_bytes())
    except (OSError, ValueError):
        return None


def remember(kind: str, key: str, value: Any) -> None:
    """Keep a JSON value in the user's cache, where that can be written. ``key`` must say all that the value depends on."""
    with suppress(OSError):
        write_json(cached(kind, key), value)


def cached(kind: str, key: str) -> Path:
    """The path of a file in the user's cache; it may not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "kdbench", kind, f"{hashlib.sha256(key.encode()).hexdigest()}.json")
