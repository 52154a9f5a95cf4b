"""Archives and compressed files in the place of a checkpoint: what is inside, so that a user can unpack the right one."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from kdbench.weightfiles.tensors import printable


LOOKED_AT = 2**25
"""Bytes of a compressed archive that are unpacked to find names."""

_COMPRESSED: dict[bytes, Callable[[BinaryIO], gzip.GzipFile | bz2.BZ2File]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
}
_OTHERS = (b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")
"""How files begin that xz, 7-Zip, zstd and RAR have made. Their names are not looked for."""


def is_data(name: str) -> bool:
    """Whether a member's name is that of the pickle in a torch file."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def files_inside(path: Path) -> str:
    """The sentence for an archive or a compressed file; "" for any other."""
    names, whole = _names(path)
    if not names:
        with path.open("rb") as file:
            beginning = file.read(6)
        packed = beginning.startswith((*_COMPRESSED, *_OTHERS))
        return "a compressed file. Unpack it and name what is inside." if packed else ""
    count = f"{len(names)} file{'' if len(names) == 1 else 's'}" if whole else "many files"
    some = ", ".join(names[:5]) + (" …" if len(names) > 5 or not whole else "")
    return f"an archive of {count} ({some}): unpack it and name {'that one' if len(names) == 1 else 'one of them'}."


def _names(path: Path) -> tuple[list[str], bool]:
    """The names of the files inside, and whether these are all."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return _in_tar(*_unpacked(file))
            with zipfile.ZipFile(file) as archive:
                names = [printable(name) for name in archive.namelist() if not name.endswith("/")]
            return [] if any(is_data(name) for name in names) else names, True
    except Exception:  # what is no archive makes the readers raise almost anything
        return [], False


def _unpacked(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """An archive without its compression, or the beginning of it; and whether it is whole."""
    file.seek(0)
    beginning = file.read(6)
    file.seek(0)
    for magic, reader in _COMPRESSED.items():
        if beginning.startswith(magic):
            with reader(file) as stream:
                content = stream.read(LOOKED_AT)
            return io.BytesIO(content), len(content) < LOOKED_AT
    return file, True


def _in_tar(file: BinaryIO, whole: bool) -> tuple[list[str], bool]:
    names = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            for member in tar:
                if member.isfile():
                    names.append(printable(member.name))
        except tarfile.TarError:
            whole = False
    return names, whole
