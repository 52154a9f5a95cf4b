"""The record of one run or teacher: specification, metrics, weights, result or failure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from kdbench.errors import BadRecord, KdbenchError, LostLease
from kdbench.files import json_bytes, make_folder, quarantine, write_atomically
from kdbench.store.lock import Lock, Taken
from kdbench.store.reading import (
    LARGEST_METRICS,
    MOST_LINES,
    check_size,
    differences,
    parse,
    read,
    read_epoch,
    read_mapping,
    some_lines,
    stored_mapping,
    unreadable,
)
from kdbench.store.result import Failure, Maker, Result
from kdbench.suite.specs import digest


FILES = ("spec.json", "metrics.jsonl", "weights.safetensors", "metadata.json", "result.json")
"""What every finished record consists of."""

OTHER_FILES = ("teacher_head.safetensors", "failure.json", "state.pt")

NO_WEIGHTS = {"weights": "not kept"}
"""The entry of metadata.json for a network whose weights were not kept."""


class Record:
    """The folder of one run or teacher. All writes are atomic; nothing is created by reading.

    ``locks`` are those that a store has handed out, by the record's path: a record is locked once, whoever asks.
    """

    def __init__(self, folder: Path | str, locks: dict[str, Lock] | None = None) -> None:
        self._path = str(folder)
        self._locks = {} if locks is None else locks
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
        """The result; None while there is none. Raises BadRecord for an invalid file."""
        try:
            text = read(f"{self._path}/result.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self.folder / "result.json", error) from None
        try:
            content = parse(text)
            checksum = content.pop("checksum", None) if isinstance(content, dict) else None
            result = Result.model_validate(content)
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadRecord(f"{self.folder / 'result.json'}: {reason.lower()}") from None
        if checksum != digest(content):
            raise BadRecord(f"{self.folder / 'result.json'}: is not what was stored (its checksum does not fit)")
        if result.id != self.id:
            raise BadRecord(f"{self.folder / 'result.json'}: belongs to {result.id}")
        return result

    def check(self, *, quick: bool = False) -> Result:
        """The result of a finished record whose files are what was stored. Raises BadRecord.

        ``quick``: of weights, only the length is checked, and they may be missing.
        """
        result = self.result()
        if result is None:
            raise BadRecord(f"{self.folder}: there is no finished network")
        for problem in chain(self.small_file_problems(result), () if quick else self.weight_problems(result)):
            raise problem
        for path in (self.weights_file, self.teacher_head_file) if quick else ():
            if os.path.lexists(path):
                check_size(path)
        return result

    def small_file_problems(self, result: Result) -> Iterator[BadRecord]:
        """Check the small files of a finished record; yields what is wrong."""
        spec = self.folder / "spec.json"
        try:
            if digest(stored_mapping(spec)) != self.id:
                yield BadRecord(f"{spec}: is not what was stored")
        except BadRecord as error:
            yield error
        if result.metrics_sha256 is not None:
            yield from differences(self.folder / "metrics.jsonl", result.metrics_sha256)

    def weight_problems(self, result: Result) -> Iterator[BadRecord]:
        """Check the content of a finished record's weights; yields what is wrong."""
        for path, sha256 in (
            (self.weights_file, result.weights_sha256),
            (self.teacher_head_file, result.teacher_head_sha256),
        ):
            if sha256 is not None and not os.path.lexists(path) and not self.keeps_weights():
                yield BadRecord(f"{path}: was not kept")
            elif sha256 is not None:
                yield from differences(path, sha256)

    def failure(self) -> Failure | None:
        """The failure; None if there is none, or it is invalid."""
        try:
            return Failure.model_validate(parse(read(f"{self._path}/failure.json")))
        except (OSError, BadRecord, ValueError):
            return None

    def diverged(self) -> bool:
        """Whether it has no valid result because its loss diverged."""
        failure = self.failure()
        return failure is not None and failure.kind == "diverged" and not self.done()

    def outcome(self) -> Result | Failure | None:
        """How it ended: its result, or the failure of a training that diverged; None of one that can go on.

        Raises BadRecord for an invalid result.
        """
        return self.result() or (self.failure() if self.diverged() else None)

    def keeps_weights(self) -> bool:
        """Whether the weights were kept: those of tiny runs only if something depends on them."""
        return not NO_WEIGHTS.items() <= self.metadata().items()

    def done(self) -> bool:
        """Whether there is a valid result."""
        try:
            return self.result() is not None
        except BadRecord:
            return False

    def has_result_file(self) -> bool:
        """Whether a result file exists, valid or not."""
        return os.path.lexists(f"{self._path}/result.json")

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return os.path.exists(self.state_file)

    def metrics(self, every: int = 1) -> list[dict[str, Any]]:
        """The epochs so far, or only the first, those that ``every`` divides, and the last; without unreadable lines."""
        try:
            content = read(f"{self._path}/metrics.jsonl", LARGEST_METRICS)
        except (OSError, BadRecord):
            return []
        if content.count(b"\n") > MOST_LINES:
            return []
        lines = content.splitlines() if every == 1 else some_lines(content.splitlines(), every)
        try:
            rows = parse(b"[%s]" % b",".join(lines))  # all at once: much faster than line by line
        except ValueError:
            rows = [read_epoch(line) for line in lines]
        return [row for row in rows if isinstance(row, dict)]

    def metadata(self) -> dict[str, Any]:
        """Machine, versions and times; {} if unknown."""
        return read_mapping(f"{self._path}/metadata.json")

    def made_by(self) -> Maker:
        """The versions and the device that made the result; "" for what is unknown."""
        metadata = self.metadata()
        versions, device = metadata.get("versions"), metadata.get("device")
        versions = versions if isinstance(versions, dict) else {}
        names = versions.get("kdbench"), versions.get("torch"), device.get("name") if isinstance(device, dict) else ""
        return Maker(*(name if isinstance(name, str) else "" for name in names))

    def version(self) -> str:
        """The version of kdbench that wrote the result; "" if unknown."""
        return self.made_by().kdbench

    def spec(self) -> dict[str, Any]:
        """The stored spec; {} if there is none."""
        return read_mapping(f"{self._path}/spec.json")

    def begin(self, spec: dict[str, Any]) -> list[str]:
        """Make the folder ready for training: write the spec, clear an old failure, set damaged results aside.

        What another process was just writing is removed, so one that was stopped before a rename and has lost its lease has
        nothing to rename. Returns messages for the user. Raises LostLease, with nothing changed, as ``write`` does.
        """
        self._check_lease()
        messages = []
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        try:
            self.result()
        except BadRecord as error:
            messages.append(
                f"{error}; quarantined as {quarantine(self.folder / 'result.json').name}, it is trained again"
            )
        (self.folder / "failure.json").unlink(missing_ok=True)
        if self.spec() != spec:
            self._write_json("spec.json", spec)
        return messages

    def write(self, name: str, write: Callable[[BinaryIO], object], *, replace: bool = True) -> None:
        """Write one of its files as ``write_atomically`` does.

        Raises LostLease, with nothing changed, where the record was locked by a lease that is lost.
        """
        try:
            write_atomically(self.folder / name, write, check=self._check_lease, replace=replace)
        except OSError:  # perhaps the new holder has removed the temporary file
            self._check_lease()
            raise

    def _check_lease(self) -> None:
        """Raise LostLease if the record was locked by a lease that is lost."""
        if self._path in self._locks:
            self._locks[self._path].check()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write one of its files. Raises as ``write`` does."""
        self.write(name, lambda file: file.write(content))

    def _write_json(self, name: str, value: Any, *, replace: bool = True) -> None:
        self.write(name, lambda file: file.write(json_bytes(value)), replace=replace)

    def write_metrics(self, rows: list[dict[str, Any]]) -> str:
        """Replace the epochs so far; returns the SHA-256 of the file."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.write_bytes("metrics.jsonl", content)
        return hashlib.sha256(content).hexdigest()

    def fail(self, failure: Failure) -> None:
        """Store why training stopped. After an error the last checkpoint stays, and a retry resumes from it."""
        self._write_json("failure.json", failure.model_dump())
        if failure.kind == "diverged":
            self.state_file.unlink(missing_ok=True)

    def finish(self, result: Result, metadata: dict[str, Any], *, replace: bool = True) -> None:
        """Store the result, last of all, and drop the resume state.

        Without ``replace`` a result that is there stays, and LostLease is raised.
        """
        self._write_json("metadata.json", metadata)
        content = result.model_dump(exclude_none=True)
        try:
            self._write_json("result.json", {**content, "checksum": digest(content)}, replace=replace)
        except FileExistsError:
            self.check_unfinished()
            raise
        self.cleanup()

    def check_unfinished(self) -> None:
        """Raise LostLease if another process has finished the record, on whatever machine."""
        with contextlib.suppress(FileNotFoundError):
            if "result.json" in os.listdir(self._path):  # for a list, network file systems ask the server
                raise LostLease(f"{self.folder}: another process has finished it meanwhile")

    def cleanup(self) -> None:
        """Remove what a finished record does not need: the resume state, and the failure of an earlier try."""
        (self.folder / "failure.json").unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)

    def lock(self) -> Lock:
        """The lock held while training. It ends with its holder, however that ends."""
        if self._path not in self._locks:
            folder = self.folder.parent.parent / "locks"
            make_folder(folder)
            self._locks[self._path] = Lock(folder / f"{self.folder.parent.name}-{self.id}.lock")
        return self._locks[self._path]

    def is_locked(self) -> bool:
        """Whether another process holds the lock."""
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Taken:
            return True
        except (KdbenchError, OSError):
            return False  # whoever wants it will say why it cannot be locked


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
