"""Tensors in weight files: shapes at once, values on demand; ZIP archives with size limits."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


SIZES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of one value, by torch's name of the type."""


@dataclass(eq=False)
class Storage:
    """Values of one type in a row. ``read`` gives their bytes; ``length`` is how many bytes they are."""

    dtype: str
    length: int
    read: Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor: a strided view of a storage, strides and ``offset`` in values.

    Without a storage it is one that no plain network has: sparse, quantised, or without values.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None

    @property
    def count(self) -> int:
        """The number of values."""
        total = 1
        for side in self.shape:
            total *= side
        return total


def stored(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Stored:
    """A view of a storage. Raises ValueError if it exceeds the storage."""
    if len(shape) != len(stride) or not all(map(_sensible, (shape, stride, (offset,)))):
        raise ValueError("no tensor has this shape")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if all(shape) and last >= storage.length // SIZES[storage.dtype]:
        raise ValueError("a tensor reaches beyond its storage")
    return Stored(shape, stride, offset, storage)


def contiguous(storage: Storage, shape: tuple[int, ...], *, columns: bool = False) -> Stored:
    """A contiguous tensor over a whole storage, row- or column-major. Raises ValueError if it is larger."""
    if not _sensible(shape):
        raise ValueError("no tensor has this shape")
    stride, step = [], 1
    for side in shape if columns else reversed(shape):
        stride.append(step)
        step *= side
    return stored(storage, 0, shape, tuple(stride if columns else reversed(stride)))


def _sensible(numbers: tuple[int, ...]) -> bool:
    return len(numbers) <= 64 and all(type(number) is int and 0 <= number < 2**62 for number in numbers)


def safe_name(name: str) -> str:
    """A name from a file as it can be shown: at most 200 letters, no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:200])


LOOKED_AT = 2**25
"""Bytes of a compressed archive that are unpacked to find names."""

_COMPRESSED: dict[bytes, Callable[[BinaryIO], gzip.GzipFile | bz2.BZ2File]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
}
_OTHERS = (b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")
"""Magic bytes of xz, 7-Zip, zstd and RAR files, whose contents are not listed."""


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
                names = [safe_name(name) for name in archive.namelist() if not name.endswith("/")]
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
                    names.append(safe_name(member.name))
        except tarfile.TarError:
            whole = False
    return names, whole
