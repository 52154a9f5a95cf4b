"""Downloads with progress, locks and checksums, and the unpacking of archives."""

from __future__ import annotations

import hashlib
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from kdbench.catalogue.datasets import Archive, Dataset
from kdbench.errors import KdbenchError
from kdbench.files import quarantine
from kdbench.store.lock import Lock


class ProgressReporter(Protocol):
    """Receives the progress of downloads, and messages."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Report that ``done`` bytes of a file have arrived; ``total`` is None if the server does not say."""

    def note(self, text: str) -> None:
        """Report a message for the user."""


class NullReporter:
    """Ignores progress and messages."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@contextmanager
def exclusive_lock(facts: Dataset, root: Path, reporter: ProgressReporter) -> Iterator[None]:
    """Hold the data set's lock: several processes may want the same files at once."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = Lock(root / f".{facts.name}.lock").wait(f"{facts.name} in {root}", reporter.note)
    except OSError as error:
        raise KdbenchError(f"{root}: nothing can be written there: {error.strerror or error}") from None
    with lock:
        yield


def md5_of(path: Path) -> str:
    """The MD5 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def checksum_mismatches(facts: Dataset, root: Path) -> list[str]:
    """The files of a data set whose MD5 sum is not the official one."""
    sums = {file: md5 for file, md5 in facts.files.items() if md5 and (root / facts.folder / file).is_file()}
    return [file for file, md5 in sums.items() if md5_of(root / facts.folder / file) != md5]


BLOCK = 2**20
TIMEOUT_SECONDS = 60.0
"""Seconds without data after which the connection counts as broken."""


def download(archive: Archive, folder: Path, reporter: ProgressReporter) -> Path:
    """Fetch a file into ``folder`` unless it is there; a wrong file of its name is quarantined.

    Raises KdbenchError, with what to do by hand, if it is unavailable or not the official file.
    """
    target = folder / archive.name
    if target.is_file():
        if md5_of(target) == archive.md5:
            return target
        reporter.note(f"{target} is not the official file. It is quarantined as {quarantine(target).name}.")
    fetch_file(archive.url, target, md5=archive.md5, reporter=reporter)
    return target


def fetch_file(url: str, target: Path, *, md5: str | None = None, reporter: ProgressReporter | None = None) -> None:
    """Fetch a file. A partial download is kept as NAME.part, resumed by the next call, and renamed when complete.

    Raises KdbenchError if it is unavailable, cannot be written, or has another MD5 sum.
    """
    part = target.with_name(target.name + ".part")
    by_hand = f"To fetch it by other means, put {url} at {target} and give the same command again."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, reporter or NullReporter())
        if md5 and (found := md5_of(part)) != md5:
            part.unlink()
            raise KdbenchError(
                f"{url}: what arrived has the MD5 sum {found}, not {md5}, and was deleted. Try again; "
                f"if that does not help, the file has changed at its source. {by_hand}"
            )
        part.replace(target)
    except _Unavailable as error:
        raise KdbenchError(f"{url}: {error}. {by_hand}") from None
    except OSError as error:
        reason = error.strerror or error
        raise KdbenchError(f"{target} cannot be written: {reason}. Run the same command to resume.") from None


class _Unavailable(Exception):
    """The server does not deliver the file."""


def _fetch(url: str, part: Path, reporter: ProgressReporter) -> None:
    """Append the missing bytes to ``part``; start again if the server does not support ranges."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kdbench", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file is complete
            return
        raise _Unavailable(f"the server answers {error.code} {error.reason}") from None
    except URLError as error:
        raise _Unavailable(f"cannot be reached: {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise _Unavailable(f"cannot be reached: {error}") from None
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Unavailable("the server answers with a web page, not with the file")
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        with part.open("ab" if start else "wb", buffering=0) as file:
            _receive(answer, file, start, part.name.removesuffix(".part"), reporter)


def _receive(answer: HTTPResponse, file: BinaryIO, start: int, name: str, reporter: ProgressReporter) -> None:
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    done = start
    reporter.progress(name, done, total)
    while block := _next_block(answer):
        file.write(block)
        done += len(block)
        reporter.progress(name, done, total)
    if total is not None and done < total:
        raise _Unavailable(f"the connection broke after {done:,} of {total:,} bytes; run the same command to resume")


def _next_block(answer: HTTPResponse) -> bytes:
    """The next bytes; none at the end of the file."""
    try:
        return answer.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise _Unavailable(f"the connection broke ({error}); run the same command to resume") from None


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def unpack(archive: Path, facts: Dataset, root: Path) -> None:
    """Unpack a data set's folder below ``root``.

    Of an archive whose files have sums of their own, only these are taken. Raises KdbenchError for a damaged archive, for one
    without the files, and for one with a name that leads out of the folder.
    """
    staging_dir = root / f".{facts.name}.unpacking"
    shutil.rmtree(staging_dir, ignore_errors=True)
    try:
        staging_dir.mkdir()
        if archive.name.endswith(".zip"):
            _unzip(archive, staging_dir)
        else:
            _untar(archive, staging_dir, {posixpath.join(facts.folder, file) for file in facts.files})
        _check(archive, facts, staging_dir)
        _move(facts, staging_dir / facts.folder, root / facts.folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise KdbenchError(f"{archive} cannot be unpacked: {error}. Remove it and fetch it again.") from None
    except OSError as error:
        raise KdbenchError(f"{archive} cannot be unpacked into {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)


def _untar(archive: Path, folder: Path, wanted: set[str]) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _reject_path_traversal(archive, member.name)
            if posixpath.normpath(member.name) in wanted:
                if not member.isreg():
                    raise KdbenchError(f"{archive}: {member.name} is not a plain file. Nothing of it is used.")
                tar.extract(member, folder, filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _reject_path_traversal(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise KdbenchError(f"{archive}: {member.filename} is not a plain file. Nothing of it is used.")
        file.extractall(folder)


def _reject_path_traversal(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise KdbenchError(f"{archive}: {name} leads out of the folder. Nothing of it is used.")


def _check(archive: Path, facts: Dataset, root: Path) -> None:
    wrong = [path.name for path in facts.lacking(root)] + checksum_mismatches(facts, root)
    if wrong:
        raise KdbenchError(f"{archive} does not hold {facts.name}: {', '.join(wrong)} missing or not the official one")


def _move(facts: Dataset, source: Path, target: Path) -> None:
    """Move a folder into place. Files with sums replace the old ones; a folder without gives way as a whole."""
    if target.exists() and all(facts.files.values()):
        for file in facts.files:
            shutil.move(source / file, target / file)
        return
    if target.exists():
        quarantine(target)
    source.rename(target)
