"""Downloads with progress, locks and checksums."""

from __future__ import annotations

import hashlib
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
    """Hears of every block that arrives, and of what else happens."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """So many bytes of a file are there, of so many in all where the server has told."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class NullReporter:
    """Nobody listens."""

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""


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
    """Those of a data set's files that are there and whose sum is not the official one."""
    sums = {file: md5 for file, md5 in facts.files.items() if md5 and (root / facts.folder / file).is_file()}
    return [file for file, md5 in sums.items() if md5_of(root / facts.folder / file) != md5]


BLOCK = 2**20
TIMEOUT_SECONDS = 60.0
"""Seconds without a byte after which the connection counts as broken."""


def download(archive: Archive, folder: Path, reporter: ProgressReporter) -> Path:
    """Fetch a file into ``folder`` unless the right one is there; another one of its name is set aside.

    Raises KdbenchError, with what to do by hand, where it cannot be had or is not the official file.
    """
    target = folder / archive.name
    if target.is_file():
        if md5_of(target) == archive.md5:
            return target
        reporter.note(f"{target} is not the official file. It is set aside as {quarantine(target).name}.")
    fetch_file(archive.url, target, md5=archive.md5, reporter=reporter)
    return target


def fetch_file(url: str, target: Path, *, md5: str | None = None, reporter: ProgressReporter | None = None) -> None:
    """Fetch a file. What has arrived of it is kept as NAME.part, and goes to its place when it is whole.

    Raises KdbenchError where it cannot be had, or written, or has not the MD5 sum that it should have.
    """
    part = target.with_name(target.name + ".part")
    by_hand = f"To fetch it by other means, put {url} at {target} and give the same command again."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, reporter or NullReporter())
        if md5 and (found := md5_of(part)) != md5:
            part.unlink()
            raise KdbenchError(
                f"{url}: what arrived has the MD5 sum {found}, not {md5}, and is thrown away. Try again; "
                f"if that does not help, the file has changed at its source. {by_hand}"
            )
        part.replace(target)
    except _Unavailable as error:
        raise KdbenchError(f"{url}: {error}. {by_hand}") from None
    except OSError as error:
        reason = error.strerror or error
        raise KdbenchError(f"{target} cannot be written: {reason}. The same command goes on from there.") from None


class _Unavailable(Exception):
    """Why the server does not give the file."""


def _fetch(url: str, part: Path, reporter: ProgressReporter) -> None:
    """Append what is lacking to ``part``; start afresh where the server cannot go on in the middle."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kdbench", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing comes after what is there
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
        raise _Unavailable(
            f"the connection broke after {done:,} of {total:,} bytes; the same command goes on from there"
        )


def _next_block(answer: HTTPResponse) -> bytes:
    """The next bytes; none where the file ends."""
    try:
        return answer.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise _Unavailable(f"the connection broke ({error}); the same command goes on from there") from None
