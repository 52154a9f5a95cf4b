"""Reads .safetensors files, torch files and TorchScript archives in bounded memory, and finds the state dict in them."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kdbench.errors import BadInput
from kdbench.weightfiles.pickles import Excessive, Inert, NumpyArray, Refused, Unpickler
from kdbench.weightfiles.tensors import SIZES, Storage, Stored, contiguous, files_inside, is_data, safe_name


SPARE = 2**28
"""Bytes that a compressed archive may unpack to beyond its own size."""


@contextmanager
def opened(path: Path) -> Iterator[object]:
    """Open a checkpoint. Tensor values are read on demand, until the end of the context.

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
                f"{path}: holds more than weights ({safe_name(error.name)}), and loading that could run code, so it is "
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
            raise Excessive(f"{safe_name(name)} claims {end - start:,} bytes")
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


def _pickled(file: BinaryIO, size: int, *, outer: bool = True) -> object:
    """A plain pickle, or a torch file of before 1.6: magic number, protocol, machine, content, keys, storages."""
    storages: dict[str, Storage] = {}

    def storage(kind: str, key: str, count: int) -> Storage:
        length = count * SIZES[kind]
        if not 0 <= length <= size:
            raise Excessive(f"a tensor claims {length:,}")
        return storages.setdefault(key, Storage(kind, length, bytes))

    def nested(content: bytes) -> object:
        return _pickled(io.BytesIO(content), len(content), outer=False)

    first = Unpickler(file, size, size, storage, nested if outer else None).load()
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


State = dict[str, Stored]
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Name parts that torch and Lightning insert for parallel, compiled, sharded or checkpointed modules."""
DEPTH = 30
"""The maximum nesting depth of mappings in a checkpoint."""


def tensors_in(content: object) -> State:
    """All tensors in a checkpoint by their path, such as ``state.model.fc.weight``; in nested mappings, the first one.

    Raises BadInput where there are none.
    """
    found: State = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([("", content)])
    while waiting:
        place, value = waiting.popleft()
        if id(value) in seen or place.count(".") > DEPTH:
            continue
        seen.add(id(value))
        inside = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(value, Inert):
            attributes, inside = dict(_attributes(value)), value.state
        elif isinstance(inside, Mapping):
            attributes = {str(key): tensor for key, inner in inside.items() if (tensor := as_tensor(inner))}
        if not isinstance(inside, Mapping):
            continue
        for name, tensor in attributes.items():
            found.setdefault(_joined(place, name), tensor)
        holders = (Mapping, list, tuple) if isinstance(value, Inert) else (Mapping, list, tuple, Inert)
        waiting += [(_joined(place, key), inner) for key, inner in inside.items() if isinstance(inner, holders)]
    if not found:
        raise BadInput(f"no weights found: it holds {_kind(content)}. Expected names and their tensors.")
    return found


def _kind(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {some([safe_name(str(key)) for key in content if isinstance(key, str | int)])}"
    return "one tensor" if as_tensor(content) else f"a {type(content).__name__}"


def some(names: list[str]) -> str:
    """The first three of many names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def class_counts(there: State, width: int, key: str | None) -> frozenset[int]:
    """For how many classes there are classifiers on an embedding of this width, at a place that ``key`` names.

    Raises BadInput for a key that names nothing.
    """
    named = [tensor for name, tensor in there.items() if is_named(name, key)]
    if not named:
        places = list(dict.fromkeys(name.partition(".")[0] for name in there))
        raise BadInput(f"the key '{key}' names nothing in it. It holds {some(places)}.")
    return frozenset(tensor.shape[0] for tensor in named if len(tensor.shape) == 2 and tensor.shape[1] == width)


def is_named(place: str, key: str | None) -> bool:
    """Whether a key names a place in a file: all of it, or some of its parts."""
    return key is None or f".{key}." in f".{place}."


def as_tensor(value: object) -> Stored | None:
    """A tensor, or an array of NumPy's as one."""
    return value.tensor() if isinstance(value, NumpyArray) else value if isinstance(value, Stored) else None


def without_wrappers(key: str) -> str:
    """A tensor's name without what wrappers have put into it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def is_averaged(place: str) -> bool:
    """Whether a place's name says that its weights are a running average of others in the file."""
    return any(
        re.search(r"(^|_)(ema|swa|avg|averaged?|averages|shadow|polyak|target|momentum|k)(_|$)", part)
        for part in place.lower().split(".")
    )


class StatedAccuracy(NamedTuple):
    """The accuracies in % that a file states: that of its weights, and the best one, perhaps of another epoch."""

    own: float | None = None
    best: float | None = None


def stated_accuracy(content: object) -> StatedAccuracy:
    """The accuracies that a file states of itself; up to 1 they are taken for fractions. None: it states none."""
    found: dict[bool, float] = {}
    for key, entry in content.items() if isinstance(content, Mapping) else ():
        if isinstance(key, str) and _ACCURACY.fullmatch(key.lower()):
            value = _number(entry)
            if value is not None and 0 <= value <= 100:
                found.setdefault("best" in key.lower(), float(value if value > 1 else 100 * value))
    return StatedAccuracy(found.get(False), found.get(True))


_ACCURACY = re.compile(
    r"((best|test|val|valid|eval|final)[_-]?)?((top[_-]?1[_-]?)?(acc|accuracy|prec|precision)[_@-]?1?|top[_-]?1)"
)


def _number(value: object) -> float | None:
    if isinstance(value, Stored) and value.count == 1 and value.storage:
        code = {"float32": "f", "float64": "d", "float16": "e", "int64": "q", "int32": "i"}.get(value.storage.dtype)
        if code is None:
            return None
        return float(struct.unpack_from(f"<{code}", value.storage.read(), value.offset * struct.calcsize(code))[0])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _attributes(root: Inert) -> Iterator[tuple[str, Stored]]:
    """The tensors of a TorchScript program under their names in the module's tree."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        name, value = waiting.pop()
        if (tensor := as_tensor(value)) is not None:
            yield name, tensor
        elif isinstance(value, Inert) and isinstance(value.state, Mapping) and id(value) not in seen:
            seen.add(id(value))
            if name.count(".") > DEPTH:
                continue
            waiting += [(_joined(name, key), inner) for key, inner in reversed(list(value.state.items()))]


def _joined(place: str, key: object) -> str:
    name = safe_name(str(key)) if isinstance(key, str | int) else "?"
    return f"{place}.{name}" if place else name
