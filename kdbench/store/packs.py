"""Packs: finished records, with their suites and code, as one archive that any machine reads.

A pack is a tar, compressed with gzip where its name ends in .gz. Its first member, manifest.json, lists all others with
length and SHA-256, in order. Equal content gives an equal file: no times, owners or places of the machine are in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, BinaryIO, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from kdbench import __version__
from kdbench.catalogue.text import shorten
from kdbench.errors import BadInput, BadRecord
from kdbench.files import file_hash, write_atomically
from kdbench.store.archives import archived_files, archived_suites, portable_about
from kdbench.store.exchange import STORED, check_copyable, stored_files
from kdbench.store.record import NO_WEIGHTS, Record
from kdbench.store.store import KINDS, Store
from kdbench.store.verify import label_of


MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 64 * 2**20
"""Bytes: the lines of several hundred thousand files."""
_HEADERS = 64 * 2**10
"""Bytes that the headers of one member may take, with what is read ahead."""
_BLOCK = 1 << 20

_NAMES = re.compile(
    rf"(?:{'|'.join(KINDS)})/[0-9a-f]{{12}}/(?:{'|'.join(map(re.escape, STORED))})"
    r"|(?:suites/[0-9a-f]{12}|sources/[0-9a-f]{64})(?:/[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,250}){1,30}"
)
"""What the files in a pack are called: relative, without links upwards or hidden parts."""


def _named_well(path: str) -> str:
    if not _NAMES.fullmatch(path):
        raise PydanticCustomError("path", "is no path of a file in a pack")
    return path


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_named_well)]
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Manifest(BaseModel):
    format: Literal["kdbench results 1"] = "kdbench results 1"
    kdbench: str
    files: list[_Entry]


@dataclass
class Packed:
    """What was packed: records by kind, bytes of the archive, and the records and suites left out as damaged."""

    records: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def pack(
    store: Store,
    file: Path,
    wanted: Mapping[str, Collection[str]] | None = None,
    *,
    suites: Collection[str] | None = None,
    without_weights: Collection[str] = (),
) -> Packed:
    """Write the records of a store that have ended, or the ``wanted`` ones (ids by kind), into one file, whole or not at all.

    suites:          the ids of the archived suites that go with them; None: all
    without_weights: ids of records whose weights stay behind

    Raises OSError where it cannot be written.
    """
    packed, contents = Packed(), dict[str, Path | bytes]()
    for kind in KINDS:
        for record in store.records(kind):
            if wanted is not None and record.id not in wanted[kind]:
                continue
            try:
                if record.outcome() is None:
                    continue
                check_copyable(record)
            except BadRecord as error:
                packed.left_out.append(f"{kind[:-1]} {record.id}, {label_of(record, kind)}: {error}")
                continue
            packed.records[kind] += 1
            contents |= _contents(record, kind, weights=record.id not in without_weights)
    problems: list[str] = []
    for kept, files in archived_suites(store, problems):
        if suites is None or kept.folder.name in suites:
            contents |= {f"suites/{kept.folder.name}/{name}": content for name, content in files.items()}
            contents[f"suites/{kept.folder.name}/about.json"] = portable_about(kept)
    packed.left_out += [line for line in problems if suites is None or any(id in line for id in suites)]
    for folder in store.root.glob("sources/*"):
        contents |= {str(path.relative_to(store.root)): path for path in archived_files(folder)}
    contents = {name: contents[name] for name in sorted(contents) if _NAMES.fullmatch(name)}
    write_atomically(file, lambda stream: _write(stream, contents, compressed=file.suffix == ".gz"))
    packed.bytes = file.stat().st_size
    return packed


def _contents(record: Record, kind: str, *, weights: bool) -> dict[str, Path | bytes]:
    """The files of a record by their names in a pack."""
    files: dict[str, Path | bytes] = {f"{kind}/{record.id}/{path.name}": path for path in stored_files(record)}
    if not weights:
        files = {name: path for name, path in files.items() if not name.endswith(".safetensors")}
        text = json.dumps({**record.metadata(), **NO_WEIGHTS}, indent=1) + "\n"
        files[f"{kind}/{record.id}/metadata.json"] = text.encode()
    return files


def _write(stream: BinaryIO, contents: Mapping[str, Path | bytes], *, compressed: bool) -> None:
    entries = [_entry(name, content) for name, content in contents.items()]
    manifest = _Manifest(kdbench=__version__, files=entries).model_dump_json(indent=1).encode()
    # weights hardly compress: more effort would cost time alone
    target: IO[bytes] = gzip.GzipFile("", "wb", 1, stream, mtime=0) if compressed else stream  # type: ignore[assignment]
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, MANIFEST, len(manifest), BytesIO(manifest))
        for entry, content in zip(entries, contents.values(), strict=True):
            with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                _add(archive, entry.path, entry.bytes, file)
    if compressed:
        target.close()


def _entry(name: str, content: Path | bytes) -> _Entry:
    if isinstance(content, bytes):
        return _Entry(path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return _Entry(path=name, bytes=content.stat().st_size, sha256=file_hash(content))


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, content)


@contextmanager
def opened(path: Path, within: Path | None = None) -> Iterator[Store]:
    """A results folder, or a pack as one: unpacked into a temporary folder (``within`` another, if given) for this long.

    Raises BadInput for what is neither, and BadRecord for a pack that is not what was written.
    """
    if path.is_dir():
        yield Store(path)
        return
    if not path.is_file():
        raise BadInput(f"{path}: no such results folder or pack")
    with tempfile.TemporaryDirectory(prefix=UNPACKED, dir=within, ignore_cleanup_errors=True) as folder:
        unpack(path, Path(folder))
        yield Store(Path(folder))


UNPACKED = ".unpacked-"
"""How the temporary folders begin into which packs are unpacked."""


class _Metered:
    """A stream that gives no more bytes than were allowed, so that no header can make its reader fill the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = 0

    def allow(self, count: int) -> None:
        """Allow further bytes, rounded up to the blocks of a tar."""
        self._left += count + -count % tarfile.BLOCKSIZE

    def read(self, count: int) -> bytes:
        content = self._stream.read(min(count, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise tarfile.ReadError("a header is larger than any that was written")
        return content


def unpack(file: Path, folder: Path) -> None:
    """Unpack a pack into an empty folder, as plain files, each of which is checked against the manifest.

    Nothing is written but what the manifest lists, and not unless there is room for it. Raises BadInput for what is no
    pack, and BadRecord for one that is not what was written.
    """
    with _reading(file) as (archive, stream):
        manifest = _read_manifest(file, archive)
        _check_room(file, manifest, folder)
        for entry in manifest.files:
            stream.allow(_HEADERS + entry.bytes)
            _extract(file, archive, entry, folder / entry.path)
        if archive.next() is not None:
            raise BadRecord(f"{file}: holds more files than its manifest lists")


def check_pack(file: Path) -> None:
    """Raise BadInput or BadRecord unless a file begins as a pack does: quick, whatever its size."""
    with _reading(file) as (archive, _):
        _read_manifest(file, archive)


@contextmanager
def _reading(file: Path) -> Iterator[tuple[tarfile.TarFile, _Metered]]:
    """A pack's members one after the other, and the stream that they come from."""
    try:
        with file.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = _Metered(gzip.GzipFile(fileobj=raw) if compressed else raw)  # type: ignore[arg-type]
            stream.allow(2 * _HEADERS + _LARGEST_MANIFEST)
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                yield archive, stream
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadRecord(f"{file}: is no whole pack of results ({error}). Copy it once more") from None
    except OSError as error:
        raise BadInput(f"{error.filename or file}: {error.strerror or error}") from None


def _read_manifest(file: Path, archive: tarfile.TarFile) -> _Manifest:
    member = archive.next()
    content = archive.extractfile(member) if member and member.name == MANIFEST and member.isreg() else None
    if not member or not content or member.size > _LARGEST_MANIFEST:
        raise BadInput(f"{file}: is no pack of results, which kdbench results pack writes")
    try:
        manifest = _Manifest.model_validate_json(content.read())
    except ValidationError as error:
        first = error.errors()[0]
        place, value = ".".join(map(str, first["loc"])), shorten(str(first["input"]))
        raise BadInput(f"{file}: its manifest cannot be read: {place} '{value}': {first['msg']}") from None
    paths = [entry.path for entry in manifest.files]
    if any(a >= b for a, b in pairwise(paths)):
        raise BadInput(f"{file}: its manifest lists files twice, or out of order")
    return manifest


def _check_room(file: Path, manifest: _Manifest, folder: Path) -> None:
    needed, free = sum(entry.bytes for entry in manifest.files), shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(
            f"{file}: unpacks to {needed / 2**20:,.1f} MiB, and {folder.parent} has room for {free / 2**20:,.1f} MiB"
        )


def _extract(file: Path, archive: tarfile.TarFile, entry: _Entry, target: Path) -> None:
    member = archive.next()
    if member is None or not member.isreg() or (member.name, member.size) != (entry.path, entry.bytes):
        kind = "" if member and member.isreg() else ", no plain file,"
        found = f"{member.name}{kind} of {member.size:,} bytes" if member else "nothing"
        raise BadRecord(f"{file}: holds {found} where its manifest lists {entry.path} of {entry.bytes:,} bytes")
    content = archive.extractfile(member)
    total = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while content and (block := content.read(_BLOCK)):
            total.update(block)
            out.write(block)
    if total.hexdigest() != entry.sha256:
        raise BadRecord(f"{file}: {entry.path} is not what was packed (its SHA-256 has changed). Copy it once more")
