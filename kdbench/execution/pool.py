"""The local pool: gives jobs to workers, teachers before the cohorts that need them, until nothing is left.

Other `kdbench run` processes may work on the same results directory. A job whose records are all taken by them comes back
"busy" and is tried again a little later, when they are done or gone.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.execution.devices import Slot
from kdbench.execution.job import Job, job_for, jobs_of
from kdbench.execution.worker_handle import WorkerHandle, WorkerOptions
from kdbench.plan.plan import Plan
from kdbench.store.record import Failure, Record
from kdbench.store.store import Store
from kdbench.suite.specs import TeacherSpec


RETRY_SECONDS = 1.0
MAX_CRASHES = 3


@dataclass
class PoolResult:
    """Ids of what failed, with the reason; whether the pool was asked to stop, or why it could not go on."""

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    fatal: str = ""


class Pool:
    """Runs a plan on slots. ``listen`` is called with (slot name, event) for each event of the workers."""

    def __init__(
        self,
        slots: Sequence[Slot],
        options: WorkerOptions,
        listen: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.slots = slots
        self.options = options
        self.listen = listen
        self.store = Store(options.results)
        self.inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.workers: dict[str, WorkerHandle] = {}
        self.running: dict[str, Job] = {}
        self.pending: list[Job] = []
        self.result = PoolResult()
        self.told = False
        self.killed = False

    def stop(self) -> None:
        """Let every worker finish its step and save; no new job is started. May be called from a signal handler."""
        self.result.interrupted = True

    def kill(self) -> None:
        """End every worker at once. May be called from a signal handler."""
        self.result.interrupted = self.killed = True

    def run(self, plan: Plan) -> PoolResult:
        """Work until all jobs are done or failed, or until stopped. Raises KdbenchError where no worker can start."""
        self.pending = jobs_of(plan)
        try:
            while not self.killed and (self.running or (self.pending and not self._stopping)):
                if self._stopping:
                    self._tell_workers()
                else:
                    self._start_jobs()
                with contextlib.suppress(queue.Empty):
                    self._handle(*self.inbox.get(timeout=0.2))
        finally:
            for worker in self.workers.values():
                worker.close()
        return self.result

    @property
    def _stopping(self) -> bool:
        return self.result.interrupted or bool(self.result.fatal)

    def _tell_workers(self) -> None:
        if not self.told:
            self.told = True
            self._say("Saving and stopping; Ctrl-C again stops at once." if self.result.interrupted else "")
            for worker in self.workers.values():
                worker.send({"stop": True})

    def _start_jobs(self) -> None:
        for slot in self.slots:
            if slot.name in self.running:
                continue
            job = self._next_job()
            if job is None:
                return
            if slot.name not in self.workers:
                try:
                    self.workers[slot.name] = WorkerHandle(slot, self.options, self.inbox)
                except OSError as error:
                    reason = f"{error.strerror or error}: {error.filename or self.options.results}"
                    raise KdbenchError(f"no worker process can be started: {reason}") from None
            self.pending.remove(job)
            self.running[slot.name] = job
            self.listen(slot.name, {"event": "started", **job.facts()})
            self.workers[slot.name].send(job.message())

    def _next_job(self) -> Job | None:
        """The first job that can start now."""
        self._drop_hopeless()
        needed = {id: need for job in self.pending for id, need in self._needs(job).items()}
        absent = {id for id, teacher in needed.items() if not self.store.record_of(teacher).done()}
        coming = {id for job in (*self.pending, *self.running.values()) for id in job.ids}
        self.pending[:0] = [job_for(needed[id]) for id in sorted(absent - coming)]
        now = time.monotonic()
        ready = (
            job for job in self.pending if job.not_before <= now and self._needs(job).keys() <= needed.keys() - absent
        )
        return next(ready, None)

    def _needs(self, job: Job) -> dict[str, TeacherSpec]:
        """What must be there before a job can start, by the id of its record."""
        return {self.store.record_of(need).id: need for need in job.needs}

    def _drop_hopeless(self) -> None:
        """Give up what needs a teacher that could not be trained, and what needs that in turn."""
        failed = self.result.failed
        while hopeless := next(((job, id) for job in self.pending for id in self._needs(job) if id in failed), None):
            job, lost = hopeless
            self.pending.remove(job)
            what = "auxiliary" if self._needs(job)[lost].made_by else "teacher"
            what = "network" if job.measurement else what
            rest = [run.id for run in job.runs if lost not in self._needs(job.only([run.id]))]
            self._fail([id for id in job.ids if id not in rest], job, f"its {what} failed: {failed[lost]}")
            if rest:
                self.pending.append(job.only(rest))

    def _handle(self, slot: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "done":
                self._done(self.running.pop(slot), event)
            case "failed":
                self.result.failed[event["id"]] = event["reason"]
            case "finished":
                self.result.failed.pop(event["id"], None)
            case "epoch" | "resumed" if slot in self.running:
                self.running[slot].note_place(event["id"], event["epoch"], event.get("batches", 0))
            case "exit":
                self._exited(slot, event["code"])
        self.listen(slot, event)

    def _done(self, job: Job, event: dict[str, Any]) -> None:
        if event.get("fatal"):
            self.result.fatal = event["error"]
        elif "error" in event:
            taken = [id for id in job.ids if self._record(job, id).busy()]
            self._fail([id for id in job.ids if id not in taken], job, event["error"], event.get("detail", ""))
            self._wait(job, taken)
        elif "lost_teacher" in event:
            self._say(event["lost_teacher"])
            job.not_before = time.monotonic() + RETRY_SECONDS
            self.pending.insert(0, job)
        else:
            self._wait(job, event["busy"])

    def _wait(self, job: Job, busy: Sequence[str]) -> None:
        """Try again later what another process is at."""
        if busy:
            self.pending.append(job.only(busy, not_before=time.monotonic() + RETRY_SECONDS, waited=True))

    def _exited(self, slot: str, code: int) -> None:
        worker = self.workers.pop(slot)
        job = self.running.pop(slot, None)
        words = worker.last_words()
        worker.close()
        if job is None or self._stopping:
            return
        job.crashes += 1
        reason = f"the worker process ended ({_exit_reason(code)})" + (f": {words}" if words else "")
        if job.crashes < MAX_CRASHES:
            self._say(f"{reason}; starting it again from the last checkpoint")
            self.pending.insert(0, job)
        elif len(job.runs) > 1:
            self._say(f"{reason}, {job.crashes} times: going on with half of the students at a time")
            self.pending[:0] = job.halves(crashes=MAX_CRASHES - 1)
        else:
            self._fail(job.ids, job, reason)

    def _fail(self, ids: Iterable[str], job: Job, reason: str, detail: str = "") -> None:
        for id in ids:
            record = self._record(job, id)
            if record.done() or id in self.result.failed:
                continue
            self.result.failed[id] = reason
            self.listen("", {"event": "failed", "id": id, "reason": reason})
            with contextlib.suppress(OSError):
                record.fail(Failure(kind="error", epoch=0, reason=reason, detail=detail))

    def _record(self, job: Job, id: str) -> Record:
        if job.measurement:
            return self.store.measurement(id)
        return self.store.teacher(id) if job.teacher else self.store.run(id)

    def _say(self, text: str) -> None:
        if text:
            self.listen("", {"event": "message", "text": text})


def _exit_reason(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
