"""What runs where and when: which job comes next, what becomes of one that failed or whose worker is lost.

Nothing here starts a process, waits or reads a clock of its own: the pool feeds it the events of real workers, a simulation
those of made-up ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdbench.errors import CannotSave, NoDevice
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Backlog, Job, cohort_job, jobs_of, spread
from kdbench.planning.cohorts import Cohort, split
from kdbench.planning.plan import Plan
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.store.record import Record
from kdbench.store.result import Failure
from kdbench.store.store import Store
from kdbench.suite.specs import Stage


RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""After a wait of so long, the user hears which process holds what is waited for."""

MAX_CRASHES = 3

RESPLIT = 1.2
"""Cohorts are split anew once there are so many times more slots than they were split for, or fewer: each split repeats
teacher passes, which a single slot that comes or goes is not worth."""


class Records(Protocol):
    """What the scheduler asks of the results, and tells them."""

    def has(self, stage: Stage) -> bool:
        """Whether a teacher, or a part of one, is there."""

    def done(self, job: Job, id: str) -> bool:
        """Whether one of a job's records is finished."""

    def is_taken(self, job: Job, id: str) -> bool:
        """Whether another process is at one of a job's records."""

    def holder(self, job: Job, id: str) -> str:
        """Which process that is, as far as known."""

    def fail(self, job: Job, id: str, failure: Failure) -> None:
        """Store why one of a job's records will not be finished."""


@dataclass(frozen=True)
class StoredRecords:
    """The records of a results folder."""

    store: Store

    def has(self, stage: Stage) -> bool:
        """Whether there is a valid result."""
        return self.store.record_of(stage).done()

    def done(self, job: Job, id: str) -> bool:
        """Whether there is a valid result."""
        return self._record(job, id).done()

    def is_taken(self, job: Job, id: str) -> bool:
        """Whether its lock is held."""
        return self._record(job, id).is_locked()

    def holder(self, job: Job, id: str) -> str:
        """The holder of its lock."""
        return self._record(job, id).lock().holder()

    def fail(self, job: Job, id: str, failure: Failure) -> None:
        """Write it to the record, if that can be written."""
        with contextlib.suppress(OSError):
            self._record(job, id).fail(failure)

    def _record(self, job: Job, id: str) -> Record:
        if job.measurement:
            return self.store.measurement(id)
        return self.store.teacher(id) if job.teacher else self.store.run(id)


@dataclass
class Outcome:
    """Ids of what failed, with the reason; whether the work was to stop, or why it could not go on."""

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    fatal: CannotSave | NoDevice | None = None

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be started."""
        return self.interrupted or self.fatal is not None


@dataclass
class SlotHealth:
    """Whether a slot's worker is ready for jobs, and how often in a row, without progress, the slot has been at fault.

    It is where a worker ends before it is ready, which no job has caused, and where a job is given up for its crashes: one
    may be the job's own fault, MAX_CRASHES different ones in a row are not.
    """

    ready: bool = False
    faults: int = 0


@dataclass(frozen=True)
class Assignment:
    """A job, the slot whose worker leads it, and the others that it gets beside, all on one host."""

    slot: Slot
    job: Job
    others: tuple[Slot, ...] = ()

    def message(self) -> dict[str, Any]:
        """What the leading worker is sent."""
        replicas = [{"environment": dict(slot.environment), "threads": slot.threads} for slot in self.others]
        return {**self.job.message(), "replicas": replicas}


class Scheduler:
    """Gives jobs to slots, teachers before the cohorts that need them, until nothing is left.

    Slots may come and go. Where many more or fewer are there, cohorts that have not started are split anew, by the time that
    they take at a ``speed``. ``listen`` is called with (slot name, or "", and an event) for what the user should know;
    ``clock`` gives seconds. Each run is trained on ``devices_per_run``; 0: on several where it would otherwise keep the
    others waiting.
    """

    def __init__(
        self,
        slots: Iterable[Slot],
        records: Records,
        listen: Callable[[str, dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        speed: Speed = ASSUMED["cpu"],
        devices_per_run: int = 1,
    ) -> None:
        self.records = records
        self.listen = listen
        self.clock = clock
        self.speed = speed
        self.devices_per_run = devices_per_run
        self.outcome = Outcome()
        self.backlog = Backlog(records.has, self.outcome.failed, self._give_up, self._spread, clock)
        self.cohorts: tuple[Cohort, ...] = ()
        self.split_for = 0
        self.slots: dict[str, Slot] = {}
        self.health: dict[str, SlotHealth] = {}
        self.lost: dict[str, str] = {}
        self.running: dict[str, Job] = {}
        self.lent: dict[str, str] = {}
        self.free: set[str] = set()
        self.held: set[str] = set()
        self.numbers: dict[str, int] = {}
        for slot in slots:
            self.add_slot(slot)

    def __bool__(self) -> bool:
        """Whether there is work left."""
        return bool(self.running or (self.backlog and not self.outcome.stopping))

    def add(self, plan: Plan) -> None:
        """Put a plan's jobs in line. Its cohorts are split for the slots that there are."""
        self.cohorts = plan.cohorts
        self.split_for = len(self.slots)
        jobs = self._spread(jobs_of(plan.split_for(self._lanes(), self.speed, self._most())))
        fewest = min((job.devices for job in jobs if job.recipes), default=self.devices_per_run)
        if fewest < self.devices_per_run:
            text = "no host has more, or batches cannot be divided equally among more"
            self._say(f"not all runs get {self.devices_per_run} devices, some {fewest}: {text}")
        self.backlog.add(jobs)

    def add_slot(self, slot: Slot) -> None:
        """A device, or a share of it, has come."""
        self.slots[slot.name] = slot
        self.numbers.setdefault(slot.name, len(self.numbers))
        self.free.add(slot.name)
        self.health[slot.name] = SlotHealth()
        self.lost.pop(slot.name, None)

    def assign(self) -> Iterator[Assignment]:
        """Start what can start now on the slots that are free.

        A job for several devices gets them on one host. Until enough are free there, it stays first in line and keeps the
        host's free slots from what comes behind it.
        """
        if not self.split_for / RESPLIT < len(self.slots) < self.split_for * RESPLIT:
            self._split_again()
        free = {name: self.slots[name] for name in sorted(self.free - self.held, key=self.numbers.__getitem__)}
        postponed: list[Job] = []
        while free and (job := self.backlog.take()):
            wanted, candidates = self._candidates(job, free.values())
            if len(candidates) < wanted:
                postponed.append(job)
                kept = {slot.host for slot in candidates}
                free = {name: slot for name, slot in free.items() if slot.host not in kept}
                continue
            for slot in candidates[:wanted]:
                del free[slot.name]
            yield self._start(job, *candidates[:wanted])
        self.backlog.add_first(postponed)

    def _start(self, job: Job, slot: Slot, *others: Slot) -> Assignment:
        self.running[slot.name] = job
        self.lent.update({other.name: slot.name for other in others})
        self.free.difference_update(each.name for each in (slot, *others))
        parts = {"teacher": job.teacher, "runs": job.runs, "measurement": job.measurement}
        self.listen(slot.name, {"event": "started", **parts, "devices": 1 + len(others), "waited": job.waited})
        return Assignment(slot, job, others)

    def _candidates(self, job: Job, free: Iterable[Slot]) -> tuple[int, list[Slot]]:
        """How many slots a job gets, and free ones: where it gets several, those of the host that will soonest have them."""
        if job.devices == 1:
            return 1, [next(iter(free))]
        hosts, there = _devices(self.slots.values()), _devices(free)
        wanted = min(job.devices, max(map(len, hosts.values())))
        return wanted, max((there.get(host, []) for host, slots in hosts.items() if len(slots) >= wanted), key=len)

    def _split_again(self) -> None:
        """Split the cohorts that have not started for the slots that there are now."""
        self.split_for = len(self.slots)
        fresh = self.backlog.withdraw_cohorts()
        ids = {id for job in fresh for id in job.ids}
        discard = frozenset[str]().union(*(job.discard_weights for job in fresh))
        self.cohorts = tuple(left for cohort in self.cohorts if (left := cohort.subset(ids)).runs)
        parts = split(self.cohorts, self._lanes(), self.speed, most=self._most())
        self.backlog.add(self._spread([cohort_job(cohort, discard) for cohort in parts]))

    def _lanes(self) -> int:
        """How many jobs can be trained at the same time."""
        return max(1, len(self.slots) // max(1, self.devices_per_run))

    def _spread(self, jobs: Sequence[Job]) -> Sequence[Job]:
        return spread(jobs, self.devices_per_run, max(1, len(self.slots)), self._largest_host(), self.speed)

    def _most(self) -> int:
        """How many devices a job may get of its own accord."""
        return 1 if self.devices_per_run else self._largest_host()

    def _largest_host(self) -> int:
        return max(map(len, _devices(self.slots.values()).values()), default=1)

    def handle(self, slot: str, event: dict[str, Any]) -> None:
        """Take note of what a worker reports of its job."""
        match event["event"]:
            case "ready" if slot in self.health:
                self.health[slot].ready = True
            case "placed":
                self.held.discard(slot)
            case "done" if job := self._release(slot):
                self.health[slot].faults = 0
                self._done(job, event)
            case "failed":
                self.outcome.failed[event["id"]] = event["reason"]
                self.backlog.settle(event["id"])
            case "finished":
                self.outcome.failed.pop(event["id"], None)
                self.backlog.settle(event["id"])
            case "epoch" | "resumed" if slot in self.running:
                if self.running[slot].record_progress(event["id"], event["epoch"], event.get("batches", 0)):
                    self.health[slot].faults = 0

    def lose(self, slot: str, reason: str, *, asked: bool = False) -> None:
        """A worker is gone, however that came; its job is started again, unless that has been tried too often.

        ``asked``: it was told to stop, and has done so.
        """
        self.held.discard(slot)
        health, job = self.health[slot], self._release(slot)
        ready, health.ready = health.ready, False
        if job is None or asked or self.outcome.stopping:
            if job and not asked:
                self._say(f"{reason}; what it has trained since its last checkpoint is lost")
        elif not ready:
            self.backlog.ended(job, [job], first=True)
            self._say(f"{reason} before it was ready; starting it again")
            self._blame(slot, reason)
        elif self._crashed(job, reason):
            self._blame(slot, reason)

    def hold(self, slot: str, reason: str) -> None:
        """Somebody else has a slot's resources: its job goes back in line, and it gets none until it is ``placed``."""
        self.held.add(slot)
        if job := self._release(self.lent.get(slot, slot)):
            self.backlog.ended(job, [job], first=True)
        self._say(f"{slot} is waited for: {reason}. Its job goes to the next slot that is free")

    def remove_slot(self, name: str, reason: str) -> None:
        """Give a slot up; the others go on, and its job goes back in line. Without any slot left the work ends."""
        del self.slots[name], self.health[name]
        self.free.discard(name)
        self.held.discard(name)
        self.lost[name] = reason
        if job := self._release(name):
            self.backlog.ended(job, [job], first=True)
        if self.slots:
            self._say(f"{name} cannot be used any longer: {reason}. The work goes on without it")
        else:
            lines = [f"{slot} cannot be used: {why}" for slot, why in self.lost.items()]
            self.outcome.fatal = NoDevice("\n".join([*lines, "No device is left (kdbench doctor looks at each)"]))

    def _release(self, slot: str) -> Job | None:
        """Free a slot, and those that its job had beside; returns the job."""
        job = self.running.pop(slot, None)
        if job:
            others = {name for name, leader in self.lent.items() if leader == slot}
            self.lent = {name: leader for name, leader in self.lent.items() if leader != slot}
            self.free |= {slot, *others} & self.slots.keys()
        return job

    def _crashed(self, job: Job, reason: str) -> bool:
        """Start a job again whose worker has died over it, or give it up. True where it is given up."""
        job.crashes += 1
        if job.crashes < MAX_CRASHES:
            self._say(f"{reason}; starting it again from the last checkpoint")
            self.backlog.ended(job, [job], first=True)
            return False
        if len(job.runs) > 1:
            self._say(f"{reason}, {job.crashes} times: continuing with half of the students at a time")
            self.backlog.ended(job, job.split(crashes=MAX_CRASHES - 1), first=True)
            return False
        self._fail(job.ids, job, reason)
        self.backlog.ended(job)
        return True

    def _blame(self, slot: str, reason: str) -> None:
        """Count a fault of a slot, and give it up where there are too many in a row."""
        self.health[slot].faults += 1
        if self.health[slot].faults >= MAX_CRASHES:
            self.remove_slot(slot, f"{reason}, {MAX_CRASHES} times in a row")

    def _done(self, job: Job, event: dict[str, Any]) -> None:
        if event.get("fatal"):
            self.outcome.fatal = CannotSave(f"{event['error']}\nNothing can be saved there, so the work stops here")
        elif "error" in event:
            taken = [id for id in job.ids if self.records.is_taken(job, id)]
            self._fail([id for id in job.ids if id not in taken], job, event["error"], event.get("detail", ""))
            self._wait(job, taken)
        elif "lost_lease" in event:
            self._say(event["lost_lease"])
            self._wait(job, [id for id in job.ids if not self.records.done(job, id)])
        elif "lost_teacher" in event:
            self._say(event["lost_teacher"])
            job.not_before = self.clock() + RETRY_SECONDS
            self.backlog.ended(job, [job], first=True)
        else:
            self._wait(job, event["busy"])

    def _wait(self, job: Job, busy: Sequence[str]) -> None:
        """Try again later what another process is at, and say who that is if it takes long."""
        if not busy:
            self.backlog.ended(job)
            return
        now = self.clock()
        since = job.waits_since or now
        holders = {id: self.records.holder(job, id) for id in busy} if now - since >= PATIENCE_SECONDS else {}
        if holders and holders != job.holders:
            each = (f"{id}, held by {holder}" for id, holder in sorted(holders.items()))
            self._say(f"waiting for what other processes are at: {'; '.join(each)}")
        later = job.subset(busy, not_before=now + RETRY_SECONDS, waited=True, waits_since=since, holders=holders)
        self.backlog.ended(job, [later])

    def _give_up(self, job: Job, ids: Sequence[str], lost: str) -> None:
        """Fail what needs something that could not be made."""
        what = "network" if job.measurement else "auxiliary" if job.dependencies[lost].source_run else "teacher"
        self._fail(ids, job, f"its {what} failed: {self.outcome.failed[lost]}")

    def _fail(self, ids: Iterable[str], job: Job, reason: str, detail: str = "") -> None:
        for id in ids:
            if self.records.done(job, id) or id in self.outcome.failed:
                continue
            self.outcome.failed[id] = reason
            self.listen("", {"event": "failed", "id": id, "reason": reason})
            self.records.fail(job, id, Failure(kind="error", epoch=0, reason=reason, detail=detail))

    def _say(self, text: str) -> None:
        self.listen("", {"event": "message", "text": text})


def _devices(slots: Iterable[Slot]) -> dict[str, list[Slot]]:
    """By host, one of these slots for each device."""
    hosts: dict[str, dict[str, Slot]] = {}
    for slot in slots:
        hosts.setdefault(slot.host, {}).setdefault(slot.device, slot)
    return {host: list(devices.values()) for host, devices in hosts.items()}
