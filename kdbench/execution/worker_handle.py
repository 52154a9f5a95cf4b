"""A worker process as its parent sees it, and the watchdog that warns of workers that hang and has them killed.

A worker's second thread reports every few seconds that the process is alive. A silent worker is stopped or waits for the
system, and is killed after a while; one that reports without progress may be in a long step and only causes a warning.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdbench.child import interpreter
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Job
from kdbench.planning.plan import Caching
from kdbench.store.liveness import process_state
from kdbench.store.store import log_name


SILENT_SECONDS = 60.0
"""A worker that has been silent for so long causes a warning."""

HUNG_SECONDS = 600.0
"""A worker that has been silent for so long is killed; one without progress causes a warning."""

STOP_SECONDS = 10.0
"""A worker that was asked to stop and has been silent for so long is killed."""

STEP_SECONDS = 30.0
"""A worker that was asked to stop and is still at its step after so long causes a warning; it is killed at HUNG_SECONDS."""


@dataclass
class WorkerState:
    """Seconds since a worker sent anything and since its job progressed, and whether the user has been warned of either.

    ``ready``: it has imported its libraries, during which it is silent.
    """

    silent: float = 0.0
    idle: float = 0.0
    warned_silent: bool = False
    warned_idle: bool = False
    ready: bool = False


@dataclass(frozen=True)
class Alarm:
    """What is wrong with the worker of a slot; ``fatal``: it is to be killed."""

    slot: str
    text: str
    fatal: bool = False


class Watchdog:
    """Measures how long workers are silent. Time in which this process itself was stopped or slow does not count."""

    def __init__(self) -> None:
        self.states: dict[str, WorkerState] = {}
        self.stopping = False
        self.checked_at = time.monotonic()

    def add(self, slot: str) -> None:
        """A new worker."""
        self.states[slot] = WorkerState()

    def restart(self, slot: str) -> None:
        """Count from now on: the worker was given something to do."""
        self.states[slot] = WorkerState(ready=self.states[slot].ready)

    def receive(self, slot: str, event: str) -> None:
        """Take note of an event of a worker."""
        state = self.states[slot]
        state.ready, state.silent, state.warned_silent = True, 0.0, False
        if event != "alive":
            state.idle, state.warned_idle = 0.0, False

    def stop(self, slots: Iterable[str]) -> None:
        """The workers have been asked to save and stop."""
        self.stopping = True
        for slot in slots:
            self.restart(slot)

    def check(self, workers: Mapping[str, int]) -> list[Alarm]:
        """What the user should know of the workers with a job, given by slot and process id."""
        now = time.monotonic()
        passed, self.checked_at = min(now - self.checked_at, 1.0), now
        alarms = [self._check(slot, pid, passed) for slot, pid in workers.items()]
        return [alarm for alarm in alarms if alarm]

    def _check(self, slot: str, pid: int, passed: float) -> Alarm | None:
        state = self.states[slot]
        state.silent += passed
        state.idle += passed
        worker = f"worker {slot} (PID {pid})" if pid else f"worker {slot}"
        silent = f"{worker} has said nothing for {state.silent:.0f} s"
        idle = f"{worker} is alive, but its job has not come further for {state.idle:.0f} s"
        if state.silent >= (STOP_SECONDS if self.stopping else HUNG_SECONDS) and (state.ready or self.stopping):
            return Alarm(slot, silent, fatal=True)
        if self.stopping and state.idle >= HUNG_SECONDS:
            return Alarm(slot, idle, fatal=True)
        if state.silent >= SILENT_SECONDS and not state.warned_silent:
            state.warned_silent = True
            return Alarm(slot, f"{silent}{_cause(pid, state.ready)}")
        if state.idle >= (STEP_SECONDS if self.stopping else HUNG_SECONDS) and not state.warned_idle:
            state.warned_idle = True
            kill = f"kill -9 {pid}" if pid else "kill -9"
            advice = "Ctrl-C again stops at once" if self.stopping else f"if it hangs, '{kill}' starts it again"
            return Alarm(slot, f"{idle}: a long step, or a device or file system that hangs; {advice}")
        return None


def _cause(pid: int, ready: bool) -> str:
    """What may be the matter with a silent process, and what will be done."""
    state = process_state(pid) if pid else ""
    if state == "stopped":
        cause = f" and is stopped ('kill -CONT {pid}' lets it go on)"
    else:
        cause = f" and is {state}" if state else ""
    return f"{cause}; after {HUNG_SECONDS / 60:.0f} min it is started again" if ready else f"{cause} since its start"


KILL_SECONDS = 5.0
"""How long a killed process may take to end."""

LONGEST_TMPDIR = 70
"""Bytes. A socket's path has 107 at most, and 32 of them come behind the folder."""


@dataclass(frozen=True)
class RunOptions:
    """Where results and data are, and on what and how to train.

    ``devices`` is ``auto``, ``cpu``, or GPU numbers such as ``0,1``; ``checkpoint_seconds`` is the age at which a resume
    point is replaced; ``deterministic``: a GPU gives the same bits each time, more slowly; ``eager``: a GPU's kernels are
    launched one by one, instead of as graphs; ``devices_per_run``: on how many each run is trained at the same time (0: on
    several where it would otherwise keep the others waiting; None: as the suites say); ``caching``: when teachers' outputs
    are cached; ``weights`` holds files of weights by SHA-256, in addition to those that suites name. ``cluster`` is the
    address of a Ray cluster, ``local``, ``auto``, or "" for this machine's devices. ``images``, the sources of images of
    one's own, and ``beside``, the folders of plug-ins' modules that are not on the import path, are found out when a run
    starts.
    """

    results: Path = Path("results")
    data: Path = Path("data")
    devices: str = "auto"
    jobs_per_device: int | None = None
    download: bool = False
    checkpoint_seconds: float = 30.0
    retry_diverged: bool = False
    deterministic: bool = False
    eager: bool = False
    cluster: str = ""
    devices_per_run: int | None = None
    caching: Caching = Caching.auto
    weights: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, ImageSource] = field(default_factory=dict)
    beside: Mapping[str, Path] = field(default_factory=dict)


Inbox = queue.Queue[tuple[str, dict[str, Any]]]
"""Where events of workers arrive, each with the name of its slot."""


class Worker(Protocol):
    """A worker process, wherever it is. ``pid`` is 0 for one of another machine."""

    pid: int

    def send(self, message: dict[str, Any], job: Job | None = None, beside: Sequence[Worker] = ()) -> None:
        """Send a job, with its message, or a request. ``beside``: the workers that hold the other slots of the job."""

    def close(self) -> bool:
        """End it at once. False where the system does not let it end."""

    def stderr_tail(self) -> str:
        """The end of its log."""


class WorkerHandle:
    """Starts a worker on a slot and talks to it. Its events arrive in ``inbox`` as (slot name, event).

    The worker has a session of its own: Ctrl-C reaches only the parent, which then asks its workers to stop. Its standard
    error goes to a log file, which is removed in the end if it is empty.
    """

    def __init__(self, slot: Slot, options: RunOptions, inbox: Inbox) -> None:
        self.slot = slot
        self.log = options.results / "logs" / log_name(slot.name)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = interpreter("from kdbench.training.worker import main\nmain()")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(slot),
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.closed = False
        self.outbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=self._listen, args=(inbox,), daemon=True),
            threading.Thread(target=self._talk, daemon=True),
        ]
        for thread in self.threads:
            thread.start()
        device = "cuda" if slot.kind == "gpu" else "cpu"
        self.send({**asdict(options), "device": device, "threads": slot.threads})

    def send(self, message: dict[str, Any], job: Job | None = None, beside: Sequence[Any] = ()) -> None:
        """Send a job or a request. One that is gone is noticed through its "exit" event, one that hangs by its silence."""
        self.outbox.put(json.dumps(message, default=str) + "\n")

    def close(self) -> bool:
        """End the process at once, if it has not ended. What it trained since its last checkpoint is lost.

        Nothing of it arrives any more. False where the system, held up by a file system or a driver, does not let it end.
        """
        self.closed = True
        self.process.kill()
        self.outbox.put("")
        try:
            self.process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        for thread in self.threads:
            thread.join()
        with contextlib.suppress(OSError):
            if self.log.stat().st_size == 0:
                self.log.unlink()
        return True

    def stderr_tail(self) -> str:
        """The end of its log, for the report of a crash."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _listen(self, inbox: Inbox) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self._pass_on(inbox, json.loads(line))
        self._pass_on(inbox, {"event": "exit", "code": self.process.wait()})

    def _pass_on(self, inbox: Inbox, event: dict[str, Any]) -> None:
        if not self.closed:
            inbox.put((self.slot.name, event))

    def _talk(self) -> None:
        """Write what is to be sent: a worker that hangs does not read, and whoever writes to it waits."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError), self.process.stdin as stdin:
            while line := self.outbox.get():
                stdin.write(line)
                stdin.flush()


def _environment(slot: Slot) -> dict[str, str]:
    """The worker's environment: what the user has set, and defaults that make training on a CPU faster.

    glibc keeps freed memory instead of returning it to the system: training asks for the same sizes again. Threads that
    wait for each other soon sleep instead of spinning: where another process wants the cores, spinning is many times
    slower.
    """
    defaults = {
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "GOMP_SPINCOUNT": "10000",
    }
    return {**defaults, **os.environ, **temporary_folder(), "PYTHONUNBUFFERED": "1", **slot.environment}


def temporary_folder() -> dict[str, str]:
    """A folder for the sockets through which the processes that decode images talk: ``/tmp`` where TMPDIR is too long."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_TMPDIR:
        return {}
    if not os.access("/tmp", os.W_OK | os.X_OK):
        raise BadInput(
            f"TMPDIR={folder} is too long for the path of a socket ({LONGEST_TMPDIR} bytes at most), and nothing can be "
            "written to /tmp. Set TMPDIR to a shorter folder."
        )
    return {"TMPDIR": "/tmp"}
