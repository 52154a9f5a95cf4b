"""One trained network on disk, a run's student or a teacher.

spec.json            what is trained; its hash is the folder's name
metrics.jsonl        one line per epoch
weights.safetensors  the trained network
about.json           when, on what machine, how long: all that may differ between two equal runs
teacher_head.safetensors  the teacher's new layers at the end, where they learned beside the student
result.json          what was measured. Its presence, valid, means done; it is written last
failure.json         why it stopped for good, instead of a result
state.pt             while it is in training: everything needed to go on from the last checkpoint
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_core import from_json

from kdbench.catalogue.hashing import file_hash
from kdbench.errors import BadRecord
from kdbench.store.files import set_aside, write_json, write_text
from kdbench.store.result import Accuracy, Failure, Kind, Result
from kdbench.suite.specs import digest


__all__ = ["NO_WEIGHTS", "Accuracy", "Failure", "Kind", "Record", "Result", "timestamp"]

NO_WEIGHTS = {"weights": "not kept"}
"""What about.json says where the trained network was not stored."""


class Record:
    """The folder of one run or teacher. All writes are atomic; nothing is created by reading."""

    def __init__(self, folder: Path | str) -> None:
        self._path = str(folder)
        self.id = os.path.basename(self._path)

    @cached_property
    def folder(self) -> Path:
        return Path(self._path)  # made when it is asked for: a report reads thousands of records without it

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    @property
    def weights_file(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def teacher_head_file(self) -> Path:
        return self.folder / "teacher_head.safetensors"

    def result(self) -> Result | None:
        """The result, or None while there is none. Raises BadRecord where the file does not hold one."""
        try:
            text = _read(f"{self._path}/result.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadRecord(f"{self.folder / 'result.json'}: {error.strerror or error}") from None
        try:
            content = parse(text)
            seal = content.pop("seal", None) if isinstance(content, dict) else None
            result = Result.model_validate(content)
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadRecord(f"{self.folder / 'result.json'}: {reason.lower()}") from None
        if seal != digest(content):
            raise BadRecord(f"{self.folder / 'result.json'}: is not what was stored (its seal does not fit)")
        if result.id != self.id:
            raise BadRecord(f"{self.folder / 'result.json'}: belongs to {result.id}")
        return result

    def check(self) -> Result:
        """The result, if it is there, for this spec, and the metrics are those that were stored with it.

        Raises BadRecord where that is not so. Metrics whose hash was not stored yet are taken as they are.
        """
        result = self.result()
        if result is None:
            raise BadRecord(f"{self.folder}: there is no finished network")
        if digest(self.spec()) != self.id:
            raise BadRecord(f"{self.folder / 'spec.json'}: is not what was stored")
        if result.metrics_sha256 is not None:
            self._compare(self.folder / "metrics.jsonl", result.metrics_sha256)
        return result

    def check_weights(self) -> None:
        """Raise BadRecord unless ``check`` finds nothing and the weights are the bytes that were stored with the result."""
        result = self.check()
        for path, sha256 in self.stored_weights(result).items():
            if not os.path.lexists(path) and not self.keeps_weights():
                raise BadRecord(f"{path}: was not kept")
            self._compare(path, sha256)

    def check_sizes(self) -> None:
        """Raise BadRecord where a file of weights is not as long as it says itself. One that was removed is none."""
        for path in (self.weights_file, self.teacher_head_file):
            if os.path.lexists(path):
                check_size(path)

    def stored_weights(self, result: Result) -> dict[Path, str]:
        """The files of weights that belong to a result, with their SHA-256."""
        files = {self.weights_file: result.weights_sha256, self.teacher_head_file: result.teacher_head_sha256}
        return {path: sha256 for path, sha256 in files.items() if sha256 is not None}

    def _compare(self, path: Path, sha256: str) -> None:
        try:
            if not os.path.lexists(path):
                raise BadRecord(f"{path}: is missing")
            _refuse_special(path.stat())
            found = file_hash(path)
        except OSError as error:
            raise BadRecord(f"{path}: cannot be read: {error.strerror or error}") from None
        if found != sha256:
            raise BadRecord(f"{path}: is not the file that was stored (its SHA-256 has changed)")

    def failure(self) -> Failure | None:
        """The failure, or None where there is none that can be read."""
        try:
            return Failure.model_validate(parse(_read(f"{self._path}/failure.json")))
        except (OSError, ValueError):
            return None

    def keeps_weights(self) -> bool:
        """Whether the finished network's weights were stored: those of tiny runs only where something was to read them."""
        return not NO_WEIGHTS.items() <= self.about().items()

    def done(self) -> bool:
        """Whether there is a valid result."""
        try:
            return self.result() is not None
        except BadRecord:
            return False

    def ended(self) -> bool:
        """Whether there is a file of a result, valid or not."""
        return os.path.lexists(f"{self._path}/result.json")

    def started(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return os.path.exists(self.state_file)

    def metrics(self, every: int = 1) -> list[dict[str, Any]]:
        """The epochs so far, or only the first, those that ``every`` divides, and the last; without unreadable lines."""
        try:
            content = _read(f"{self._path}/metrics.jsonl", _LARGEST_METRICS)
        except OSError:
            return []
        lines = content.splitlines() if every == 1 else _some_lines(content, every)
        try:
            rows = parse(b"[%s]" % b",".join(lines))  # all at once: much faster than line by line
        except ValueError:
            rows = [_read_epoch(line) for line in lines]
        return [row for row in rows if isinstance(row, dict)]

    def about(self) -> dict[str, Any]:
        """Machine, versions and times, or {} where there are none."""
        return _read_mapping(f"{self._path}/about.json")

    def version(self) -> str:
        """The version of kdbench that made the result, or "" where that is not known."""
        versions = self.about().get("versions")
        version = versions.get("kdbench") if isinstance(versions, dict) else None
        return version if isinstance(version, str) else ""

    def work(self) -> tuple[str, float, float]:
        """Kind of device, multiply-accumulates and seconds of the training; ("", 0, 0) where they are not known."""
        return work_of(self.about())

    def spec(self) -> dict[str, Any]:
        """The spec as stored, or {} where there is none."""
        return _read_mapping(f"{self._path}/spec.json")

    def begin(self, spec: dict[str, Any]) -> list[str]:
        """Make the folder ready for training: write the spec, clear an old failure, set damaged results aside.

        What a killed process was just writing is removed. Returns messages for the user.
        """
        messages = []
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        try:
            self.result()
        except BadRecord as error:
            messages.append(f"{error}; set aside as {set_aside(self.folder / 'result.json').name}, it is trained again")
        (self.folder / "failure.json").unlink(missing_ok=True)
        if self.spec() != spec:
            write_json(self.folder / "spec.json", spec)
        return messages

    def write_metrics(self, rows: list[dict[str, Any]]) -> str:
        """Replace the epochs so far; returns the SHA-256 of the file."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(self.folder / "metrics.jsonl", text)
        return hashlib.sha256(text.encode()).hexdigest()

    def fail(self, failure: Failure) -> None:
        """Store why training stopped. After an error the last checkpoint stays: the next try goes on from it."""
        write_json(self.folder / "failure.json", failure.model_dump())
        if failure.kind == "diverged":
            self.state_file.unlink(missing_ok=True)

    def finish(self, result: Result, about: dict[str, Any]) -> None:
        """Store the result, last of all, and drop the resume state."""
        write_json(self.folder / "about.json", about)
        content = result.model_dump(exclude_none=True)
        write_json(self.folder / "result.json", {**content, "seal": digest(content)})
        self.tidy()

    def tidy(self) -> None:
        """Remove what a finished record does not need: the resume state, and the failure of an earlier try."""
        (self.folder / "failure.json").unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)

    def lock(self) -> FileLock:
        """The lock that whoever trains this holds. The system frees it when the process ends, however it ends."""
        locks = self.folder.parent.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{self.folder.parent.name}-{self.id}.lock")

    def busy(self) -> bool:
        """Whether another process holds the lock."""
        lock = self.lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def work_of(about: dict[str, Any]) -> tuple[str, float, float]:
    """What Record.work gives, from what Record.about gave."""
    device, macs, seconds = about.get("device"), about.get("macs"), about.get("seconds")
    kind = device.get("kind") if isinstance(device, dict) else None
    if isinstance(kind, str) and isinstance(macs, int | float) and isinstance(seconds, int | float):
        return kind, float(macs), float(seconds)
    return "", 0.0, 0.0


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


_LARGEST, _LARGEST_METRICS = 4 * 2**20, 32 * 2**20
"""Bytes of a file that are read: far more than kdbench writes, and little enough for whatever stands there instead."""


def _read(path: str, largest: int = _LARGEST) -> bytes:
    """A file's content. Thousands of small files are read for a report: without a file object, in half the time.

    Raises OSError for what is no file, and for one that is larger than any that kdbench writes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would let one wait for ever
    try:
        _refuse_special(os.fstat(descriptor))
        content = b""
        while more := os.read(descriptor, 65536):
            content += more
            if len(content) > largest:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return content
    finally:
        os.close(descriptor)


def _refuse_special(found: os.stat_result) -> None:
    """Raise OSError for a folder, pipe, socket or device."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def check_size(path: Path) -> None:
    """Raise BadRecord unless a file is safetensors and as long as its header says: quick, whatever its size."""
    from safetensors import SafetensorError, safe_open

    try:
        _refuse_special(path.stat())
        with safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise BadRecord(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise BadRecord(f"{path}: is not the file that was stored ({error})") from None


def parse(text: bytes) -> Any:
    """What JSON says. Raises ValueError also for numbers that are not finite or beyond 64 bits: kdbench writes none."""
    value = from_json(text, allow_inf_nan=False)
    if _LONG_NUMBER.search(text) and not _moderate(value):
        raise ValueError("number out of range")
    return value


_LONG_NUMBER = re.compile(rb"\d{19}|[eE]\+?\d{3}")
"""Where this is found there may be such a number."""


def _moderate(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_moderate, value.values()))
    if isinstance(value, list):
        return all(map(_moderate, value))
    if isinstance(value, int):
        return abs(value) < 2**63
    return not isinstance(value, float) or math.isfinite(value)


def _read_mapping(path: str) -> dict[str, Any]:
    try:
        value = parse(_read(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _some_lines(content: bytes, every: int) -> list[bytes]:
    """The first line, those whose epoch ``every`` divides, and the last. Epochs follow each other from line to line.

    Most of a file is never made into lines: a report reads thousands of them.
    """
    import numpy

    ends = numpy.flatnonzero(numpy.frombuffer(content, numpy.uint8) == ord("\n")).tolist()
    if not content.endswith(b"\n"):
        ends.append(len(content))
    first = (_read_epoch(content[: ends[0]]) or {}).get("epoch")
    start = -first % every if isinstance(first, int) else 0
    chosen = [0, *range(start or every, len(ends) - 1, every), len(ends) - 1][: len(ends)]
    return [content[ends[line - 1] + 1 if line else 0 : ends[line]] for line in chosen]


def _read_epoch(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
