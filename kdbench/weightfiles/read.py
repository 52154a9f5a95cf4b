"""What a .safetensors file, a torch file or a TorchScript archive holds, in no more memory than its size asks for."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from kdbench.errors import BadInput
from kdbench.weightfiles.archives import files_inside, is_data
from kdbench.weightfiles.pickles import Excessive, Refused, Unpickler
from kdbench.weightfiles.tensors import SIZES, Storage, contiguous, printable


SPARE = 2**28
"""Bytes that a compressed archive may unpack to beyond its own size."""


@contextmanager
def opened(path: Path) -> Iterator[object]:
    """What a file holds, not yet its tensors' values. These can be read until the end of the context.

    Raises BadInput where that is no checkpoint, or more than tensors and plain data.
    """
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file" if not path.exists() else "not a plain file"
        raise BadInput(f"{path}: {what}. Give the path of a checkpoint (.safetensors, .pth, .pt, .bin).")
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
    with file:
        try:
            content = _content(file, path)
        except Refused as error:
            raise BadInput(
                f"{path}: holds more than weights ({printable(error.name)}), and loading that could run code, so it is "
                "refused. Where you trust the file, load it yourself and save the network's state_dict() as .safetensors."
            ) from None
        except BadInput:
            raise
        except Exception as error:  # bytes that are no checkpoint make the readers raise almost anything
            raise BadInput(f"{path}: {_no_checkpoint(path, error)}") from None
        try:
            yield content
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput(f"{path}: {_no_checkpoint(path, error)}") from None


def _no_checkpoint(path: Path, error: Exception) -> str:
    if not isinstance(error, Excessive) and (inside := files_inside(path)):
        return inside
    size = path.stat().st_size
    why = f": {error}" if isinstance(error, Excessive) else ""
    return (
        f"truncated, damaged or not a checkpoint ({size:,} bytes{why}). Download it again, or save it with safetensors."
    )


def _content(file: BinaryIO, path: Path) -> object:
    beginning = file.read(512)
    file.seek(0)
    if beginning.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise BadInput(
            f"{path}: a web page, not weights: the server answered the download with a page. "
            "Open the link in a browser and download the file itself."
        )
    if beginning[8:9] == b"{":  # after the header's length in eight bytes
        return _safetensors(file, path.stat().st_size)
    return _zipped(file, path) if beginning.startswith(b"PK") else _pickled(file, path.stat().st_size)


_SAFETENSORS = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _safetensors(file: BinaryIO, size: int) -> object:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, 2**24):
        raise Excessive(f"its header claims {length:,} bytes")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        kind, (start, end) = _SAFETENSORS[entry["dtype"]], entry["data_offsets"]
        if not 0 <= start <= end <= size - 8 - length:
            raise Excessive(f"{printable(name)} claims {end - start:,} bytes")
        read = partial(_at, file, 8 + length + start, end - start)
        found[name] = contiguous(Storage(kind, end - start, read), tuple(entry["shape"]))
        if found[name].count * SIZES[kind] != end - start:
            raise ValueError("a tensor does not fill its place")
    return found


def _zipped(file: BinaryIO, path: Path) -> object:
    archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    unpacked = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if unpacked > size + SPARE:
        raise Excessive(f"unpacked they would be {unpacked:,}")
    (data,) = filter(is_data, members)
    folder = data.removesuffix("data.pkl")
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are in another byte order")
    storages: dict[str, Storage] = {}

    def storage(kind: str, key: str, _: int) -> Storage:
        if key not in storages:
            name = f"{folder}data/{key}"
            storages[key] = Storage(kind, members[name].file_size, partial(archive.read, name))
        return storages[key]

    return Unpickler(io.BytesIO(archive.read(data)), members[data].file_size, size, storage).load()


_MAGIC = 0x1950A86A20F9469CFC6C


def _pickled(file: BinaryIO, size: int) -> object:
    """A plain pickle, or a torch file of before 1.6: magic number, protocol, machine, content, keys, storages."""
    storages: dict[str, Storage] = {}

    def storage(kind: str, key: str, count: int) -> Storage:
        length = count * SIZES[kind]
        if not 0 <= length <= size:
            raise Excessive(f"a tensor claims {length:,}")
        return storages.setdefault(key, Storage(kind, length, bytes))

    first = Unpickler(file, size, size, storage).load()
    if first != _MAGIC:
        return first
    for _ in range(2):
        Unpickler(file, size, size, storage).load()
    content = Unpickler(file, size, size, storage).load()
    for key in Unpickler(file, size, size, storage).load():
        (count,) = struct.unpack("<q", file.read(8))
        place, owner = file.tell(), storages[key]
        if count * SIZES[owner.dtype] != owner.length or place + owner.length > size:
            raise EOFError("a storage is cut off")
        owner.read = partial(_at, file, place, owner.length)
        file.seek(place + owner.length)
    return content


def _at(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)
