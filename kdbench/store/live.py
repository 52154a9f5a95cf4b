"""Heartbeats: what each `kdbench run` is at, in live/MACHINE-PID.json beside the records, for whoever looks from elsewhere.

Machines' clocks differ, so a heartbeat holds durations, and its age is taken by the clock that stamps the folder's files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdbench.errors import BadRecord
from kdbench.files import write_text
from kdbench.store.liveness import Process, file_system_time
from kdbench.store.reading import read
from kdbench.store.store import Store


STALE_SECONDS = 60.0
"""A process that lives renews its heartbeat several times in so long."""

FORGOTTEN_SECONDS = 7 * 86_400.0
"""A heartbeat that was not renewed for so long is removed by the next run, wherever it came from."""


@dataclass
class NetworkAt:
    """A network in training: the epochs behind it of how many, and the ``share`` of the next, from 0 to 1.

    ``top1`` is its accuracy in the epoch ``tested``.
    """

    label: str
    epoch: int = 0
    epochs: int = 0
    initial_epochs: int = 0
    share: float = 0.0
    loss: float | None = None
    top1: float | None = None
    tested: int = 0

    def advance(self, event: dict[str, Any]) -> None:
        """Take note of what an event of its training tells: ``epoch``, ``under way`` or ``resumed``."""
        self.epoch, self.epochs, self.initial_epochs = event["epoch"], event["epochs"], event["initial_epochs"]
        self.share = event.get("share", 0.0)
        self.loss = event.get("loss", self.loss)
        if event.get("top1") is not None:
            self.top1, self.tested = event["top1"], event.get("tested", event["epoch"])

    @property
    def part(self) -> float:
        """The share of its epochs that is behind it, from 0 to 1."""
        total = self.epochs + self.initial_epochs
        return (self.epoch + self.share + self.initial_epochs) / total if total else 0.0

    @property
    def test(self) -> str:
        """Its last test, e.g. ``91.50 @ 20``: the accuracy in %, and the epoch."""
        return "" if self.top1 is None else f"{self.top1:.2f} @ {self.tested}"

    @property
    def place(self) -> str:
        """The epochs behind it of how many, e.g. ``3/240``, ``3.25/240`` on the way, or ``3/30 (initial)``."""
        if not self.epochs:
            return "waiting"
        done, digits = self.epoch + self.share, 2 if self.share else 0
        if self.initial_epochs and done <= 0:
            return f"{done + self.initial_epochs:.{digits}f}/{self.initial_epochs} (initial)"
        return f"{done:.{digits}f}/{self.epochs}"


class JobAt(BaseModel):
    """The job of a slot: for how many seconds it has run, and its networks by id."""

    model_config = ConfigDict(frozen=True)

    title: str
    seconds: float
    images_per_second: float
    networks: dict[str, NetworkAt]


class Heartbeat(BaseModel):
    """What a process says of itself: who it is, for how many seconds it has run, what it has done, and the job of each slot.

    ``host``, ``pid``, ``place`` and ``started`` are its Process, ``batch_job`` is its number at a batch system, such as
    ``Slurm job 17_3``. ``done``, ``failed`` and ``left`` count runs, teachers and measurements.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    place: str
    started: str
    version: str
    batch_job: str
    suites: list[str]
    seconds: float
    done: int = 0
    failed: int = 0
    left: int = 0
    slots: dict[str, JobAt] = {}

    @property
    def process(self) -> Process:
        """The process that it is of."""
        return Process(self.pid, self.host, self.place, self.started)


@dataclass(frozen=True)
class Sighting:
    """A heartbeat as it was found: ``age`` is in seconds, ``ended`` says that its process is known to be gone."""

    path: Path
    heartbeat: Heartbeat
    age: float
    ended: bool

    @property
    def stale(self) -> bool:
        """Whether the process has not been heard of for longer than one that lives."""
        return self.age > STALE_SECONDS

    @property
    def at_work(self) -> bool:
        """Whether the process lives, as far as can be told from here."""
        return not (self.ended or self.stale)


def heartbeat_file(store: Store, process: Process) -> Path:
    """Where a process leaves its heartbeats."""
    return store.root / "live" / f"{process.machine}-{process.pid}.json"


def beat(store: Store, heartbeat: Heartbeat) -> None:
    """Leave a heartbeat, if it can be written: a disk that is full stops no work."""
    with contextlib.suppress(OSError):
        write_text(heartbeat_file(store, heartbeat.process), heartbeat.model_dump_json(indent=1) + "\n")


def end_beating(store: Store, process: Process) -> None:
    """Remove the heartbeat of a process that ends, and the folder after the last one."""
    file = heartbeat_file(store, process)
    with contextlib.suppress(OSError):
        file.unlink()
        file.parent.rmdir()


def sightings(store: Store) -> Iterator[Sighting]:
    """The heartbeats that are there and can be read, in no order."""
    folder = store.root / "live"
    files = list(folder.glob("*.json"))
    now = file_system_time(folder) if files else 0.0
    for file in files:
        with contextlib.suppress(OSError, BadRecord, ValidationError):
            age = max(0.0, now - file.stat().st_mtime)
            heartbeat = Heartbeat.model_validate_json(read(str(file)))
            yield Sighting(file, heartbeat, age, heartbeat.process.ended())


def forget_the_dead(store: Store) -> None:
    """Remove the heartbeats of processes that are known to be gone, or were not heard of for long, also half-written ones."""
    folder = store.root / "live"
    with contextlib.suppress(OSError):
        for file in folder.glob(".*.tmp"):
            if file_system_time(folder) - file.stat().st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
        for sighting in sightings(store):
            if sighting.ended or sighting.age > FORGOTTEN_SECONDS:
                sighting.path.unlink(missing_ok=True)


def batch_job() -> str:
    """The number under which a batch system runs this process; "" where none does."""
    if job := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"Slurm job {job}_{os.environ.get('SLURM_ARRAY_TASK_ID', '?')}"
    job = os.environ.get("SLURM_JOB_ID")
    return f"Slurm job {job}" if job else ""
