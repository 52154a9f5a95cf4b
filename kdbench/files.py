"""Atomic file writes, content hashes, canonical JSON and a cache of what takes long to find out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    check: Callable[[], object] | None = None,
    replace: bool = True,
) -> None:
    """Call ``write`` on a temporary file in the folder of ``path``, flush it to disk and rename it to ``path``.

    Whoever reads ``path`` sees the old content or the new one. ``check`` is called last before that; what it raises keeps the
    old content. Without ``replace`` an existing file stays, and FileExistsError is raised. Raises OSError (disk full, no
    permission) with the old content untouched and no temporary file left.
    """
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.tmp"
    try:
        with _create(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check()
        if replace:
            temporary.replace(path)
        else:
            _link(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _create(path: Path) -> BinaryIO:
    try:
        file = path.open("xb")
    except FileNotFoundError:
        make_folder(path.parent)
        file = path.open("xb")
    share_with_group(path)
    return file


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name unless there is one of that name. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not temporary.samefile(path):  # NFS repeats a request whose answer was lost
            raise
    except OSError as error:
        if error.errno not in _UNLINKED:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)
        return
    temporary.unlink()


_UNLINKED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems without hard links, such as SMB and FAT."""


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there, and share new ones as ``share_with_group`` does."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        make_folder(folder.parent)
        make_folder(folder)
    else:
        share_with_group(folder)


def share_with_group(path: Path) -> None:
    """Let a folder's group use a new file or folder in it as it may use the folder, whatever the umask.

    Only folders that the group may write to, and not everybody, are shared so.
    """
    folder = os.stat(path.parent).st_mode
    if folder & (stat.S_IWGRP | stat.S_IWOTH) == stat.S_IWGRP:
        mode = os.stat(path).st_mode
        group = folder & (stat.S_IRWXG if stat.S_ISDIR(mode) else stat.S_IRGRP | stat.S_IWGRP)
        with suppress(PermissionError):  # a file system without modes
            os.chmod(path, stat.S_IMODE(mode) | group)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, as ``json_bytes`` gives it."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A value as the content of a JSON file: indented, in the order of the keys given."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def quarantine(path: Path) -> Path:
    """Rename a damaged file so that it is not read again but not lost either. Returns the new name."""
    for number in range(1, 10_000):
        target = path.with_name(f"{path.name}.damaged-{number}")
        if not target.exists():
            path.rename(target)
            return target
    raise OSError(f"{path}: too many damaged copies")


def remove_folder(path: Path) -> None:
    """Remove a folder: renamed first, so that no half of it is ever seen. Raises OSError.

    A file that is still open stays on NFS under a name of its own (``.nfs…``), and with it the renamed folder, as if this
    process had been killed here.
    """
    going = path.with_name(f".{path.name.strip('.')}.{secrets.token_hex(6)}.tmp")
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)
    try:
        shutil.rmtree(going)  # tells why, if anything is left
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise


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


def free_space(folder: Path) -> int:
    """The free bytes of the file system in which a folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
