"""The parent's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import BadInput
from kdbench.execution.child import interpreter
from kdbench.execution.devices import Slot
from kdbench.store.store import log_name


KILL_SECONDS = 5.0
"""How long a killed process may take to end."""

LONGEST_TMPDIR = 70
"""Bytes. A socket's path has 107 at most, and 32 of them come behind the folder."""


@dataclass(frozen=True)
class WorkerOptions:
    """What all workers of a pool have in common.

    ``weights``: the user's files of weights by SHA-256; ``beside``: the folders of plug-ins' modules that are not on the
    import path.
    """

    results: Path
    data: Path
    download: bool = False
    checkpoint_seconds: float = 30.0
    weights: Mapping[str, Path] = field(default_factory=dict)
    beside: Mapping[str, Path] = field(default_factory=dict)


class WorkerHandle:
    """Starts a worker on a slot and talks to it. Its events arrive in ``inbox`` as (slot name, event).

    The worker has a session of its own: Ctrl-C reaches only the parent, which then asks its workers to stop. Its standard
    error goes to a log file, which is removed in the end if it is empty.
    """

    def __init__(self, slot: Slot, options: WorkerOptions, inbox: queue.Queue[tuple[str, dict[str, Any]]]) -> None:
        self.slot = slot
        self.log = options.results / "logs" / log_name(slot.name)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = interpreter("from kdbench.training.worker import main\nmain()")
        command += ["--device", "cuda" if slot.kind == "gpu" else "cpu", "--threads", str(slot.threads)]
        command += ["--results", str(options.results), "--data", str(options.data)]
        command += ["--checkpoint-seconds", str(options.checkpoint_seconds)]
        command += ["--download"] if options.download else []
        for sha256, file in options.weights.items():
            command += ["--weights", f"{sha256}={file.resolve()}"]
        for module, folder in options.beside.items():
            command += ["--beside", f"{module}={folder}"]
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

    def send(self, message: dict[str, Any]) -> None:
        """Send a job or a request. One that is gone is noticed through its "exit" event, one that hangs by its silence."""
        self.outbox.put(json.dumps(message) + "\n")

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

    def last_words(self) -> str:
        """The end of its log, for the report of a crash."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _listen(self, inbox: queue.Queue[tuple[str, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self._pass_on(inbox, json.loads(line))
        self._pass_on(inbox, {"event": "exit", "code": self.process.wait()})

    def _pass_on(self, inbox: queue.Queue[tuple[str, dict[str, Any]]], event: dict[str, Any]) -> None:
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
