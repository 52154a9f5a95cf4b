"""Seats on the nodes of a Ray cluster, as whoever holds them sees them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from kdbench.catalogue.text import shorten
from kdbench.errors import KdbenchError
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Job
from kdbench.execution.node import Files, Mirror, Seat
from kdbench.execution.worker_handle import KILL_SECONDS, Inbox, RunOptions
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.specs import Stage


PLACE_SECONDS = 30.0
"""How long Ray may take to start a seat, before its job goes back in line."""

WAIT_SECONDS = 3.0
"""So often is looked whether a seat that took longer has started."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster, by Ray's id for it and a name for the user."""

    id: str
    name: str
    slots: tuple[Slot, ...] = ()
    shares_results: bool = True


class SeatHandle:
    """A seat on a node as its holder sees it: what a WorkerHandle is for a worker of this machine.

    Ray starts it once the slot's resources are free. Where that takes long, what it was sent is given back with the event
    ``held``; ``placed`` says that it is there after all. What it is sent with other seats ``beside`` waits for these, too.

    On a node that does not see the results folder, the records that a job needs are sent with it, the locks of its own are
    held here meanwhile, and what its worker writes lands here before its events are passed on.
    """

    pid = 0

    def __init__(self, ray: Any, slot: Slot, options: RunOptions, inbox: Inbox, node: Node, store: Store) -> None:
        self.ray, self.slot, self.options, self.inbox, self.node = ray, slot, options, inbox, node
        self.store = store
        self.mirror = None if node.shares_results else Mirror(store.root)
        self.held = ExitStack()
        self.beside: Sequence[SeatHandle] = ()
        self.busy: list[str] = []
        self.needs: list[Stage] = []
        self.closed = False
        self.placed = False
        self._ask_for_seat()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _ask_for_seat(self) -> None:
        """Ask Ray for a seat; it waits in Ray's line until the resources of its slot are free."""
        gpus = 1 / (self.options.jobs_per_device or 1) if self.slot.gpu else 0
        actor = self.ray.remote(concurrency_groups={"listening": 1, "sending": 1})(Seat).options(
            num_gpus=gpus,
            num_cpus=0 if gpus else self.slot.threads,
            scheduling_strategy=on_node(self.ray, self.node.id),
        )
        self.seat = actor.remote(self.slot, self.options, shares_results=self.node.shares_results)
        self.ready = self.seat.__ray_ready__.remote()

    def send(self, message: dict[str, Any], job: Job | None = None, beside: Sequence[Any] = ()) -> None:
        """Send a job or a request. One that is gone is noticed through its "exit" event."""
        if job:
            self.beside = beside
        if message.get("stop") and not all(seat.placed for seat in (self, *self.beside)):
            self._pass_on({"event": "done", "busy": []})
            return
        files: Files = {}
        if self.mirror and job:
            message = self._claim(message, job)
            if not any(message.get(part) for part in ("runs", "teacher", "measurement")):
                self._pass_on({"event": "done", "busy": []})
                return
            self.needs = [*job.dependencies.values()]
            files = self._needed(job)
        lent = [seat.seat.lend.remote() for seat in beside]
        self.seat.send.options(concurrency_group="sending").remote(message, files, lent)

    def close(self) -> bool:
        """End the worker at once. What it trained since its last checkpoint is lost."""
        self.closed = True
        ended = True
        if self.placed:
            with contextlib.suppress(self.ray.exceptions.RayError):
                ended = self.ray.get(self.seat.close.remote(), timeout=2 * KILL_SECONDS)
        self.ray.kill(self.seat)
        self.thread.join()
        self.held.close()
        return ended

    def stderr_tail(self) -> str:
        """The end of the worker's log, if its node can still tell."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            return str(self.ray.get(self.seat.stderr_tail.remote(), timeout=KILL_SECONDS))
        return ""

    def _claim(self, message: dict[str, Any], job: Job) -> dict[str, Any]:
        """Lock a job's records, and take what another process is at out of the message."""
        self.busy = []
        for record in self._records(job):
            try:
                self.held.enter_context(record.lock().acquire(timeout=0))
            except Taken:
                self.busy.append(record.id)
        if job.runs:
            runs = [spec for run, spec in zip(job.runs, message["runs"], strict=True) if run.id not in self.busy]
            return {**message, "runs": runs}
        return {**message, "teacher": None, "measurement": None} if self.busy else message

    def _records(self, job: Job) -> list[Record]:
        of = self.store.measurement if job.measurement else self.store.teacher if job.teacher else self.store.run
        return [of(id) for id in job.ids]

    def _needed(self, job: Job) -> Files:
        """The files of a job's own records and of those that it depends on."""
        records = [*self._records(job), *(self.store.record_of(need) for need in job.dependencies.values())]
        return {
            path: content
            for record in records
            for path, content in Mirror(self.store.root).record(record.folder.parent.name, record.id).items()
        }

    def _wait_for_place(self) -> None:
        """Wait until Ray has started the seat. Where that takes long, it is asked for anew, without what it was sent."""
        if self._is_placed(PLACE_SECONDS):
            return
        self.ray.kill(self.seat)
        self.held.close()
        self._ask_for_seat()
        self._pass_on({"event": "held", "reason": self._why_not_placed()})
        while not self.closed and not self._is_placed(WAIT_SECONDS):
            pass
        self._pass_on({"event": "placed"})

    def _is_placed(self, seconds: float) -> bool:
        with contextlib.suppress(self.ray.exceptions.GetTimeoutError):
            self.ray.get(self.ready, timeout=seconds)
            self.placed = True
        return self.placed

    def _why_not_placed(self) -> str:
        """Who holds the slot's resources, as far as Ray tells: it knows where a job's actors are, but not its tasks."""
        wanted = "a GPU" if self.slot.gpu else "a CPU" if self.slot.threads == 1 else f"{self.slot.threads} CPUs"
        jobs, here = other_jobs(self.ray, self.node.id)
        if not jobs:
            return f"node {self.node.name} has started no process for {PLACE_SECONDS:.0f} s"
        waited = f"node {self.node.name} has not had {wanted} free for {PLACE_SECONDS:.0f} s"
        return f"{waited}: {'held by' if here else 'the cluster also has'} {', '.join(here or jobs)}"

    def _listen(self) -> None:
        errors = self.ray.exceptions
        try:
            self._wait_for_place()
            while not self.closed:
                asked = self.seat.events.options(concurrency_group="listening").remote()
                files, events = self.ray.get(asked)
                if self.mirror and files:
                    self.mirror.write(files)
                for event in events:
                    if event["event"] == "done":
                        self.held.close()
                        event["busy"] = [*event.get("busy", ()), *self.busy]
                        if self.mirror and "lost_teacher" in event:
                            self._check_teachers()
                    self._pass_on(event)
        except errors.RayError as error:
            if not self.closed:
                self._pass_on(self._end(error))
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename or self.store.root}"
            self._pass_on({"event": "done", "error": reason, "fatal": True})
        except KdbenchError as error:
            self._pass_on({"event": "done", "error": str(error), "fatal": True})

    def _check_teachers(self) -> None:
        """Quarantine what the job depends on and is damaged here, too: the node quarantined its copy."""
        for text in self.store.quarantine_damaged_teachers(self.needs):
            self._pass_on({"event": "message", "text": text})

    def _end(self, error: Exception) -> dict[str, Any]:
        """The event for a seat that is gone. Ray may take a moment to find that its whole node is."""
        for _ in range(20):
            if self.node.id not in alive(self.ray):
                return {"event": "left", "reason": "its node is lost"}
            time.sleep(0.3)
        return {"event": "exit", "code": 1, "reason": f"Ray lost the worker of {self.slot.name}: {last_line(error)}"}

    def _pass_on(self, event: dict[str, Any]) -> None:
        if not self.closed:
            self.inbox.put((self.slot.name, event))


def alive(ray: Any) -> dict[str, dict[str, Any]]:
    """What Ray says of each node that is there, by its id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def other_jobs(ray: Any, node: str) -> tuple[list[str], list[str]]:
    """The other jobs of a cluster, and those of them that have actors on a node. Both are empty where Ray does not tell."""
    with contextlib.suppress(Exception):  # Ray has this for debugging only, and may change it
        state, own = ray._private.state, ray.get_runtime_context().get_job_id()
        jobs = {
            job["JobID"]: f"job {job['JobID']} ({shorten(job['Entrypoint'])}, from {job['DriverIPAddress']})"
            for job in state.jobs()
            if job["JobID"] != own and not job["IsDead"]
        }
        actors = state.actors(actor_state_name="ALIVE").values()
        here = {actor["JobID"] for actor in actors if actor["Address"]["NodeID"] == node}
        return [*jobs.values()], [label for id, label in jobs.items() if id in here]
    return [], []


def on_node(ray: Any, node: str) -> Any:
    """Ray's strategy that places something on one node, and nowhere else."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def last_line(error: BaseException) -> str:
    """The last line of what an error says, behind the tracebacks of other processes."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
