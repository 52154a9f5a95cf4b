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

from kdbench.child import exit_reason
from kdbench.errors import CannotSave, KdbenchError, NoDevice
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Backlog, Job, jobs_of
from kdbench.execution.worker_handle import RunOptions, Watchdog, WorkerHandle
from kdbench.planning.plan import Plan
from kdbench.store.record import Failure, Record
from kdbench.store.store import Store


RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""After a wait of so long, the user hears which process holds what is waited for."""

MAX_CRASHES = 3


@dataclass
class PoolResult:
    """Ids of what failed, with the reason; whether the pool was asked to stop, or why it could not go on."""

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    fatal: CannotSave | NoDevice | None = None


@dataclass
class SlotHealth:
    """Whether a slot's worker is ready for jobs, and how often in a row, without progress, the slot has been at fault.

    It is where a worker ends before it is ready, which no job has caused, and where a job is given up for its crashes: one
    may be the job's own fault, MAX_CRASHES different ones in a row are not.
    """

    ready: bool = False
    faults: int = 0


class Pool:
    """Runs a plan on slots. ``listen`` is called with (slot name, event) for each event of the workers."""

    def __init__(
        self,
        slots: Sequence[Slot],
        options: RunOptions,
        listen: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.slots = slots
        self.options = options
        self.listen = listen
        self.store = Store(options.results)
        self.inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.workers: dict[str, WorkerHandle] = {}
        self.running: dict[str, Job] = {}
        self.watchdog = Watchdog()
        self.result = PoolResult()
        self.backlog = Backlog(self.store, self.result.failed, self._give_up)
        self.health = {slot.name: SlotHealth() for slot in slots}
        self.lost_slots: dict[str, str] = {}
        self.told_to_stop = False
        self.killed = False

    def stop(self) -> None:
        """Let every worker finish its step and save; no new job is started. May be called from a signal handler."""
        self.result.interrupted = True

    def kill(self) -> None:
        """End every worker at once. May be called from a signal handler."""
        self.result.interrupted = self.killed = True

    def run(self, plan: Plan) -> PoolResult:
        """Work until all jobs are done or failed, or until stopped. Raises KdbenchError where no worker can start."""
        self.backlog.add(jobs_of(plan))
        try:
            while not self.killed and (self.running or (self.backlog and not self._stopping)):
                if self._stopping:
                    self._stop_workers()
                else:
                    self._start_jobs()
                with contextlib.suppress(queue.Empty):
                    self._handle(*self.inbox.get(timeout=0.2))
                self._check_workers()
        finally:
            for worker in self.workers.values():
                worker.close()
        return self.result

    @property
    def _stopping(self) -> bool:
        return self.result.interrupted or self.result.fatal is not None

    def _stop_workers(self) -> None:
        if not self.told_to_stop:
            self.told_to_stop = True
            if self.result.interrupted:
                self._say("Saving and stopping; Ctrl-C again stops at once.")
            for worker in self.workers.values():
                worker.send({"stop": True})
            self.watchdog.stop(self.running)

    def _start_jobs(self) -> None:
        for slot in self.slots:
            if slot.name in self.running or slot.name in self.lost_slots:
                continue
            job = self.backlog.take()
            if job is None:
                return
            if slot.name not in self.workers:
                try:
                    self.workers[slot.name] = WorkerHandle(slot, self.options, self.inbox)
                except OSError as error:
                    reason = f"{error.strerror or error}: {error.filename or self.options.results}"
                    raise KdbenchError(f"no worker process can be started: {reason}") from None
                self.watchdog.add(slot.name)
                self.health[slot.name].ready = False
            self.running[slot.name] = job
            self.watchdog.restart(slot.name)
            parts = {"teacher": job.teacher, "runs": job.runs, "measurement": job.measurement}
            self.listen(slot.name, {"event": "started", **parts, "waited": job.waited})
            self.workers[slot.name].send(job.message())

    def _check_workers(self) -> None:
        """Warn of workers that hang, and kill those that are silent for too long."""
        if not self.inbox.empty():
            return
        for alarm in self.watchdog.check({slot: self.workers[slot].pid for slot in self.running}):
            if alarm.fatal:
                ended = self.workers[alarm.slot].close()
                still = "" if ended else ", but the system does not let it end"
                self._lose(alarm.slot, f"{alarm.text} and was killed{still}")
                self.listen(alarm.slot, {"event": "exit"})
            else:
                self._say(alarm.text)

    def _give_up(self, job: Job, ids: Sequence[str], lost: str) -> None:
        """Fail what needs something that could not be made."""
        what = "network" if job.measurement else "auxiliary" if job.dependencies[lost].source_run else "teacher"
        self._fail(ids, job, f"its {what} failed: {self.result.failed[lost]}")

    def _handle(self, slot: str, event: dict[str, Any]) -> None:
        self.watchdog.receive(slot, event["event"])
        match event["event"]:
            case "alive":
                return
            case "ready":
                self.health[slot].ready = True
            case "unusable" if slot in self.workers:
                self.workers[slot].close()
                self._return_job(slot)
                self._lose_slot(slot, event["reason"])
            case "done" if slot in self.running:
                self.health[slot].faults = 0
                self._done(self.running.pop(slot), event)
            case "failed":
                self.result.failed[event["id"]] = event["reason"]
                self.backlog.settle(event["id"])
            case "finished":
                self.result.failed.pop(event["id"], None)
                self.backlog.settle(event["id"])
            case "epoch" | "resumed" if slot in self.running:
                if self.running[slot].record_progress(event["id"], event["epoch"], event.get("batches", 0)):
                    self.health[slot].faults = 0
            case "exit" if slot in self.workers:
                words = self.workers[slot].stderr_tail()
                self.workers[slot].close()
                reason = f"the worker process ended ({exit_reason(event['code'])})" + (f": {words}" if words else "")
                self._lose(slot, reason, asked=self._stopping and event["code"] == 0)
        self.listen(slot, event)

    def _done(self, job: Job, event: dict[str, Any]) -> None:
        if event.get("fatal"):
            self.result.fatal = CannotSave(f"{event['error']}\nNothing can be saved there, so the work stops here")
        elif "error" in event:
            taken = [id for id in job.ids if self._record(job, id).is_locked()]
            self._fail([id for id in job.ids if id not in taken], job, event["error"], event.get("detail", ""))
            self._wait(job, taken)
        elif "lost_teacher" in event:
            self._say(event["lost_teacher"])
            job.not_before = time.monotonic() + RETRY_SECONDS
            self.backlog.ended(job, [job], first=True)
        else:
            self._wait(job, event["busy"])

    def _wait(self, job: Job, busy: Sequence[str]) -> None:
        """Try again later what another process is at, and say who that is if it takes long."""
        if not busy:
            self.backlog.ended(job)
            return
        now = time.monotonic()
        since = job.waits_since or now
        holders = {id: self._record(job, id).lock().holder() for id in busy} if now - since >= PATIENCE_SECONDS else {}
        if holders and holders != job.holders:
            each = (f"{id}, held by {holder}" for id, holder in sorted(holders.items()))
            self._say(f"waiting for what other processes are at: {'; '.join(each)}")
        later = job.subset(busy, not_before=now + RETRY_SECONDS, waited=True, waits_since=since, holders=holders)
        self.backlog.ended(job, [later])

    def _lose(self, slot: str, reason: str, *, asked: bool = False) -> None:
        """A worker is gone, however that came; its job is started again, unless that has been tried too often."""
        health, job = self.health[slot], self.running.get(slot)
        if job is None or asked or self._stopping:
            del self.workers[slot]
            self.running.pop(slot, None)
            if job and not asked:
                self._say(f"{reason}; what it has trained since its last checkpoint is lost")
            return
        if not health.ready:
            self._return_job(slot)
            self._say(f"{reason} before it was ready; starting it again")
            self._blame(slot, reason)
            return
        del self.workers[slot], self.running[slot]
        job.crashes += 1
        if job.crashes < MAX_CRASHES:
            self._say(f"{reason}; starting it again from the last checkpoint")
            self.backlog.ended(job, [job], first=True)
        elif len(job.runs) > 1:
            self._say(f"{reason}, {job.crashes} times: continuing with half of the students at a time")
            self.backlog.ended(job, job.split(crashes=MAX_CRASHES - 1), first=True)
        else:
            self._fail(job.ids, job, reason)
            self.backlog.ended(job)
            self._blame(slot, reason)

    def _blame(self, slot: str, reason: str) -> None:
        """Count a fault of a slot, and give it up where there are too many in a row."""
        self.health[slot].faults += 1
        if self.health[slot].faults >= MAX_CRASHES:
            self._lose_slot(slot, f"{reason}, {MAX_CRASHES} times in a row")

    def _return_job(self, slot: str) -> None:
        """Put the job of a worker that is gone back in line: it is not to blame."""
        del self.workers[slot]
        if job := self.running.pop(slot, None):
            self.backlog.ended(job, [job], first=True)

    def _lose_slot(self, slot: str, reason: str) -> None:
        """Give a slot up; the others go on. Without any left the work ends."""
        self.lost_slots[slot] = reason
        left = len(self.slots) - len(self.lost_slots)
        if left:
            self._say(f"{slot} cannot be used any longer: {reason}. The work goes on without it")
        else:
            lines = [f"{name} cannot be used: {why}" for name, why in self.lost_slots.items()]
            self.result.fatal = NoDevice("\n".join([*lines, "No device is left (kdbench doctor looks at each)"]))

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
        self.listen("", {"event": "message", "text": text})
