"""The record of one run or teacher: specification, metrics, weights, result or failure."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from filelock import Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdbench.errors import BadRecord, KdbenchError
from kdbench.files import quarantine, write_json, write_text
from kdbench.store.lock import Lock
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
from kdbench.suite.specs import digest


Kind = Literal["run", "teacher", "measurement"]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Value = Annotated[float, Field(ge=-1e100, le=1e100)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Accuracy(BaseModel):
    """Test accuracy in percent after an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: Count
    top1: Percent
    top5: Percent


POINT = 1.0
"""Percentage points by which stated and measured accuracy may differ before that is a warning."""


class Result(BaseModel):
    """The result of a finished network. Equal runs give byte-identical results on the same CPU.

    ``measure`` is how the accuracy came about: by the network's classifier, or, where it has none, by a vote of the
    nearest training images (kdbench.evaluation). It is None for an encoder that was trained elsewhere. ``published_top1``
    is what an imported file says of its weights, ``published_best`` of the best epoch of their training,
    ``parent_sha256`` the hash of the weights on which a teacher's stage was made, or those, joined by "+", of the teacher
    and adapters that taught a run, or of the networks that were measured. ``values`` are what was measured on them, by
    name; ``undefined`` says why others are not there.

    ``metrics_sha256`` is the hash of metrics.jsonl.

    ``sm_score`` and ``layer_cka`` say how alike the maps are that the run's terms associate (kdbench.evaluation),
    on average over those of the last ten epochs that were tested. ``teacher`` is the accuracy of the teacher as it taught,
    where its own record does not hold that: its new layers learned beside the student (``teacher_head_sha256`` is the hash of
    their file), or it was shown other test images, or the same otherwise, than where it was measured.

    Under a scenario ``changed_labels`` says how many of the student's labels are not the true ones, and ``samples_sha256`` is
    the hash of its images and labels (`kdbench data samples` lists them).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Kind
    last: Accuracy | None = None
    best: Accuracy | None = None
    measure: Literal["classifier", "neighbours"] = "classifier"
    published_top1: Percent | None = None
    published_best: Percent | None = None
    parent_sha256: str | None = None
    values: dict[str, Value] | None = None
    undefined: dict[str, str] | None = None
    train_images: Count = 0
    test_images: Count = 0
    changed_labels: Count | None = None
    samples_sha256: str | None = None
    sm_score: Value | None = None
    layer_cka: Value | None = None
    teacher: Accuracy | None = None
    teacher_head_sha256: str | None = None
    weights_sha256: str
    metrics_sha256: str | None = None

    @model_validator(mode="after")
    def _measured(self) -> Result:
        if self.kind == "run" and (self.last is None or self.best is None):
            raise ValueError("a run's result holds its last and its best accuracy")
        return self

    def accuracy(self, score: str) -> Accuracy | None:
        """The accuracy by a score rule, ``last`` or ``best``; None for an encoder without classes."""
        return self.best if score == "best" else self.last

    def contradiction(self, measured: Accuracy | None) -> str:
        """A sentence where an imported file states an accuracy more than a point from the measured one, else ""."""
        stated = self.published_best if self.published_top1 is None else self.published_top1
        if measured is None or stated is None or abs(stated - measured.top1) <= POINT:
            return ""
        whose = (
            "as the best of its training, perhaps of another epoch" if self.published_top1 is None else "of its weights"
        )
        return (
            f"its file states {stated:.2f} % {whose}, and {measured.top1:.2f} % is measured here: check mean and std, the "
            "images' size, and the order of the classes"
        )


class Failure(BaseModel):
    """Why a run stopped for good. A diverged run would diverge again; an error may be gone next time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diverged", "error"]
    epoch: int
    reason: str
    detail: str = ""


class Compute(NamedTuple):
    """The kind of the device that trained a network, and the training's multiply-accumulates and seconds."""

    device: str
    macs: float
    seconds: float


class Maker(NamedTuple):
    """The versions of kdbench and torch, and the device, that made a record; "" for what is unknown."""

    kdbench: str = ""
    torch: str = ""
    device: str = ""

    def __str__(self) -> str:
        libraries = (
            f"{name} {version}" for name, version in (("kdbench", self.kdbench), ("torch", self.torch)) if version
        )
        return ", ".join([*libraries, *filter(None, [self.device])]) or "machine and versions unknown"


FILES = ("spec.json", "metrics.jsonl", "weights.safetensors", "metadata.json", "result.json")
"""What every finished record consists of."""

OTHER_FILES = ("teacher_head.safetensors", "failure.json", "state.pt")

NO_WEIGHTS = {"weights": "not kept"}
"""The entry of metadata.json for a network whose weights were not kept."""


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

        What a killed process was just writing is removed. Returns messages for the user.
        """
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
            write_json(self.folder / "spec.json", spec)
        return messages

    def write_metrics(self, rows: list[dict[str, Any]]) -> str:
        """Replace the epochs so far; returns the SHA-256 of the file."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(self.folder / "metrics.jsonl", text)
        return hashlib.sha256(text.encode()).hexdigest()

    def fail(self, failure: Failure) -> None:
        """Store why training stopped. After an error the last checkpoint stays, and a retry resumes from it."""
        write_json(self.folder / "failure.json", failure.model_dump())
        if failure.kind == "diverged":
            self.state_file.unlink(missing_ok=True)

    def finish(self, result: Result, metadata: dict[str, Any]) -> None:
        """Store the result, last of all, and drop the resume state."""
        write_json(self.folder / "metadata.json", metadata)
        content = result.model_dump(exclude_none=True)
        write_json(self.folder / "result.json", {**content, "checksum": digest(content)})
        self.cleanup()

    def cleanup(self) -> None:
        """Remove what a finished record does not need: the resume state, and the failure of an earlier try."""
        (self.folder / "failure.json").unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)

    def lock(self) -> Lock:
        """The lock held while training. The system releases it when the process ends, however it ends."""
        locks = self.folder.parent.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return Lock(locks / f"{self.folder.parent.name}-{self.id}.lock")

    def is_locked(self) -> bool:
        """Whether another process holds the lock."""
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True
        except (KdbenchError, OSError):
            return False  # whoever wants it will say why it cannot be locked


def compute_of(metadata: dict[str, Any]) -> Compute:
    """What a training cost, from its record's metadata; ("", 0, 0) if unknown."""
    device, macs, seconds = metadata.get("device"), metadata.get("macs"), metadata.get("seconds")
    kind = device.get("kind") if isinstance(device, dict) else None
    if not (isinstance(kind, str) and isinstance(macs, int | float) and isinstance(seconds, int | float)):
        return Compute("", 0.0, 0.0)
    possible = 0 <= macs < 1e30 and (seconds == 0 or 1e-6 < seconds < 1e12)
    return Compute(kind, float(macs), float(seconds)) if possible else Compute("", 0.0, 0.0)


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
