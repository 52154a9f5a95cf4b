"""What runs on a node of a cluster: a look at the node, and a seat, which starts a worker there and passes on what it says.

Where the node does not see the results folder, a seat works in a temporary one: records that its jobs need are written into
it, and what its worker writes is handed back, file by file.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.errors import KdbenchError, reason_of
from kdbench.execution.devices import NO_GPUS, Machine, Slot, query_devices
from kdbench.execution.worker_handle import Inbox, RunOptions, WorkerHandle
from kdbench.files import write_bytes, write_text
from kdbench.store.liveness import Process
from kdbench.store.record import Record
from kdbench.store.store import KINDS


EVENT_SECONDS = 1.0
"""So long a seat waits for an event before it says that there is none."""

Files = Mapping[str, bytes]
"""Contents of files by their paths within a results folder."""


def versions() -> dict[str, str]:
    """The versions in which all nodes must agree."""
    return {"kdbench": __version__, "torch": version("torch"), "Python": ".".join(map(str, sys.version_info[:2]))}


@dataclass(frozen=True)
class NodeFacts:
    """A node's versions and devices, whether it sees the results folder, and those of the given paths that it lacks."""

    versions: Mapping[str, str]
    machine: Machine
    shares_results: bool
    missing: Sequence[str] = ()


def look_at_node(token: str, paths: Sequence[str], *, gpus: bool) -> NodeFacts:
    """The facts of the node on which this is called; ``token``: a file in the results folder, or "" where none is wanted."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # hidden from tasks that reserve no GPU
    missing = [path for path in paths if not os.path.exists(path)]
    return NodeFacts(versions(), query_devices(gpus=gpus), not token or os.path.exists(token), missing)


@dataclass
class Mirror:
    """A results folder, and the state of its records' files when they were last read or written."""

    root: Path
    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def write(self, files: Files) -> None:
        """Write files; of each record the checkpoint first and the result last.

        What they replace goes, as it went where they were made: the failure of an earlier try, the checkpoint of what is
        finished or has diverged.
        """
        for path in sorted(files, key=lambda path: _LANDING.get(path.rpartition("/")[2], 1)):
            target = self.root / path
            write_bytes(target, files[path])
            self.known[path] = _state(target)
            record = Record(target.parent)
            match target.name:
                case "state.pt":
                    (record.folder / "failure.json").unlink(missing_ok=True)
                case "failure.json" if record.diverged():
                    record.state_file.unlink(missing_ok=True)
                case "result.json":
                    record.cleanup()

    def changes(self) -> dict[str, bytes]:
        """The files that were written since they were last looked at.

        Removed ones are not told: where a node clears its temporary folder, the results stay.
        """
        there, changed = dict[str, tuple[int, int]](), dict[str, bytes]()
        for path in self._files():
            with suppress(OSError):  # replaced or removed meanwhile: the next look finds it
                there[path] = _state(self.root / path)
                if there[path] != self.known.get(path):
                    changed[path] = (self.root / path).read_bytes()
        self.known = there
        return changed

    def record(self, kind: str, id: str) -> dict[str, bytes]:
        """All files of one record."""
        return {path: (self.root / path).read_bytes() for path in self._files_of(f"{kind}/{id}")}

    def _files(self) -> Iterator[str]:
        sources = (path for path in self.root.glob("sources/*/**/*") if path.is_file() and path.name[0] != ".")
        yield from (str(path.relative_to(self.root)) for path in sources)
        for kind in KINDS:
            with suppress(FileNotFoundError):
                for entry in sorted(os.listdir(self.root / kind)):
                    if "." not in entry:
                        yield from self._files_of(f"{kind}/{entry}")

    def _files_of(self, folder: str) -> Iterator[str]:
        """The files of a record: the result, whose presence says that the others are whole, first, a checkpoint last."""
        with suppress(FileNotFoundError):
            names = [name for name in os.listdir(self.root / folder) if name[0] != "." and ".damaged-" not in name]
            yield from (f"{folder}/{name}" for name in sorted(names, key=_rank))


_LANDING = {"state.pt": 0, "failure.json": 2, "result.json": 3}
"""In which order the files of a record are written; the others as 1."""


def _rank(name: str) -> int:
    return {"result.json": 0, "state.pt": 2}.get(name, 1)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


PREFIX = "kdbench-node-"
"""With which the names of seats' temporary folders begin."""


def note_users(folder: Path, *pids: int) -> None:
    """Write down which processes use a seat's temporary folder."""
    write_text(folder / "users.json", json.dumps([Process.of(pid) for pid in pids]))


def remove_abandoned() -> None:
    """Remove the folders of seats that were killed, once it is certain that their processes have ended."""
    for users in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/users.json"):
        with suppress(OSError, ValueError, TypeError):  # another user's, or just being removed
            if all(Process(*each).ended() for each in json.loads(users.read_text())):
                shutil.rmtree(users.parent)


class Seat:
    """A slot on a node. Whoever holds it sends jobs and asks again and again for events.

    Its worker starts with the first job. While the slot is lent to the worker of another seat, it has none and holds what Ray
    has given it.
    """

    def __init__(self, slot: Slot, options: RunOptions, *, shares_results: bool) -> None:
        self.mirror: Mirror | None = None
        if not shares_results:
            remove_abandoned()
            self.mirror = Mirror(Path(tempfile.mkdtemp(prefix=PREFIX)))
            note_users(self.mirror.root, os.getpid())
            options = replace(options, results=self.mirror.root)
        self.slot, self.options = slot, options
        self.inbox: Inbox = queue.Queue()
        self.worker: WorkerHandle | None = None

    def send(self, message: dict[str, Any], files: Files, lent: Sequence[Any] = ()) -> None:
        """Write the records that a job needs, and send it to the worker.

        ``lent``: for each of the message's replicas Ray's reference to what ``lend`` of its seat returns. Where one of these
        seats is lost, nothing is sent: its holder hears of that. Other failures are told as the worker's ``exit``.
        """
        if lent:
            import ray

            try:
                beside = zip(message["replicas"], ray.get(lent), strict=True)
            except ray.exceptions.RayError:
                return
            message = {**message, "replicas": [{**replica, "environment": there} for replica, there in beside]}
        try:
            if self.mirror:
                self.mirror.write(files)
            if not self.worker and not message.get("stop"):
                self._start_worker()
        except (OSError, KdbenchError) as error:
            reason = f"the worker of {self.slot.name} cannot be started: {reason_of(error)}"
            self.inbox.put((self.slot.name, {"event": "exit", "code": 1, "reason": reason}))
            return
        if self.worker:
            self.worker.send(message)

    def _start_worker(self) -> None:
        self.worker = WorkerHandle(self.slot, self.options, self.inbox)
        if self.mirror:
            note_users(self.mirror.root, os.getpid(), self.worker.pid)

    def lend(self) -> dict[str, str]:
        """End the worker. Returns the environment in which another process finds the slot's device."""
        if self.worker:
            self.worker.close()
            self.worker = None
        given = {name: os.environ[name] for name in NO_GPUS if name in os.environ}
        return {**given, **self.slot.environment}

    def events(self) -> tuple[Files, list[dict[str, Any]]]:
        """What has changed in a results folder of the seat's own, and then the events that came before that."""
        events = []
        with suppress(queue.Empty):
            events.append(self.inbox.get(timeout=EVENT_SECONDS)[1])
            while True:
                events.append(self.inbox.get_nowait()[1])
        return self.mirror.changes() if self.mirror else {}, events

    def stderr_tail(self) -> str:
        """The end of the worker's log."""
        return self.worker.stderr_tail() if self.worker else ""

    def close(self) -> bool:
        """End the worker at once. False where the system does not let it end."""
        ended = self.worker.close() if self.worker else True
        if self.mirror:
            shutil.rmtree(self.mirror.root, ignore_errors=True)
        return ended
