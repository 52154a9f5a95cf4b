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

import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import ValidationError
from pydantic_core import from_json

from kdbench.catalogue.hashing import file_hash
from kdbench.errors import BadRecord, KdbenchError
from kdbench.store.files import set_aside, write_json, write_text
from kdbench.store.lock import Lock
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
            content = _parse(text)
            seal = content.pop("seal", None) if isinstance(content, dict) else None
            result = Result.model_validate(content)
        except (ValueError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadRecord(f"{self.folder / 'result.json'}: {reason.lower()}") from None
        if seal != digest(content):
            raise BadRecord(f"{self.folder / 'result.json'}: is not what was stored (its seal does not fit)")
        if result.id != self.id:
            raise BadRecord(f"{self.folder / 'result.json'}: belongs to {result.id}")
        return result

    def check_weights(self) -> None:
        """Raise BadRecord unless there is a result, for this spec, and the weights are the bytes that were stored with it."""
        result = self.result()
        if result is None:
            raise BadRecord(f"{self.folder}: there is no finished network")
        if digest(self.spec()) != self.id:
            raise BadRecord(f"{self.folder / 'spec.json'}: is not what was stored")
        files = {self.weights_file: result.weights_sha256, self.teacher_head_file: result.teacher_head_sha256}
        for path, sha256 in files.items():
            if sha256 is None:
                continue
            if not path.is_file():
                raise BadRecord(f"{path}: " + ("is missing" if self.keeps_weights() else "was not kept"))
            if file_hash(path) != sha256:
                raise BadRecord(f"{path}: is not the file that was stored (its SHA-256 has changed)")

    def failure(self) -> Failure | None:
        """The failure, or None where there is none that can be read."""
        try:
            return Failure.model_validate_json(_read(f"{self._path}/failure.json"))
        except (OSError, ValidationError):
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

    def started(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.state_file.exists()

    def metrics(self, every: int = 1) -> list[dict[str, Any]]:
        """The epochs so far, or only the first, those that ``every`` divides, and the last; without unreadable lines."""
        try:
            content = _read(f"{self._path}/metrics.jsonl")
        except OSError:
            return []
        lines = content.splitlines() if every == 1 else _some_lines(content, every)
        try:
            rows = _parse(b"[%s]" % b",".join(lines))  # all at once: much faster than line by line
        except (ValueError, RecursionError):
            rows = [_read_epoch(line) for line in lines]
        return [row for row in rows if isinstance(row, dict)]

    def about(self) -> dict[str, Any]:
        """Machine, versions and times, or {} where there are none."""
        return _read_mapping(f"{self._path}/about.json")

    def version(self) -> str:
        """The version of kdbench that made the result, or "" where that is not known."""
        versions = self.about().get("versions")
        return str(versions.get("kdbench", "")) if isinstance(versions, dict) else ""

    def work(self) -> tuple[str, float, float]:
        """Kind of device, multiply-accumulates and seconds of the training; ("", 0, 0) where they are not known."""
        return work_of(self.about())

    def spec(self) -> dict[str, Any]:
        """The spec as stored, or {} where there is none."""
        return _read_mapping(f"{self._path}/spec.json")

    def begin(self, spec: dict[str, Any]) -> list[str]:
        """Make the folder ready for training: write the spec, clear an old failure, set damaged results aside.

        Returns messages for the user.
        """
        messages = []
        try:
            self.result()
        except BadRecord as error:
            messages.append(f"{error}; set aside as {set_aside(self.folder / 'result.json').name}, it is trained again")
        (self.folder / "failure.json").unlink(missing_ok=True)
        if self.spec() != spec:
            write_json(self.folder / "spec.json", spec)
        return messages

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Replace the epochs so far."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

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

    def lock(self) -> Lock:
        """The lock that whoever trains this holds. The system frees it when the process ends, however it ends."""
        locks = self.folder.parent.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return Lock(locks / f"{self.folder.parent.name}-{self.id}.lock")

    def busy(self) -> bool:
        """Whether another process holds the lock."""
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True
        except (KdbenchError, OSError):
            return False  # whoever wants it will say why it cannot be locked


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


def _read(path: str) -> bytes:
    """A file's content. Thousands of small files are read for a report: without a file object, in half the time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = b""
        while more := os.read(descriptor, 65536):
            content += more
        return content
    finally:
        os.close(descriptor)


def _parse(text: bytes) -> Any:
    """What JSON says. The fast parser is stricter, so what it refuses goes to the usual one, which says what is wrong."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _read_mapping(path: str) -> dict[str, Any]:
    try:
        value = _parse(_read(path))
    except (OSError, ValueError, RecursionError):
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
        value = _parse(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
