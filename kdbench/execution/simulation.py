"""Plays a plan with the scheduler of a real run, made-up workers and a clock that jumps: how long it would take."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdbench.errors import KdbenchError
from kdbench.execution.devices import Slot
from kdbench.execution.jobs import Job
from kdbench.execution.scheduler import Assignment, Scheduler
from kdbench.planning.cost import NOTHING, measurement_work, shared_work, student_work, teacher_work
from kdbench.planning.plan import Plan
from kdbench.planning.speed import Speed
from kdbench.store.result import Failure
from kdbench.suite.specs import Stage


@dataclass(frozen=True)
class Conditions:
    """What costs time beside the work itself, in seconds.

    start:      until a worker process is ready for its first job
    prepare:    from a job to its first step: data set, networks, the choice of algorithms
    checkpoint: between two checkpoints
    save:       the share of time that saving takes
    loss:       between two losses of a device, somewhere; 0: none is lost
    absence:    until another device takes the place of one that was lost
    per_host:   so many devices are on one host, and can train one run together, where hosts are not named
    """

    start: float = 0.0
    prepare: float = 0.0
    checkpoint: float = 30.0
    save: float = 0.0
    loss: float = 0.0
    absence: float = 600.0
    per_host: int = 8
    seed: int = 0


@dataclass
class Played:
    """How a plan went.

    makespan: seconds until the last job was done
    trained:  seconds in which devices trained, what had to be repeated included
    repeated: seconds of training that were lost with a device
    losses:   how often a device was lost
    jobs:     how many jobs came to their end
    widths:   how many of these were on so many devices
    """

    devices: int
    makespan: float = 0.0
    trained: float = 0.0
    repeated: float = 0.0
    losses: int = 0
    jobs: int = 0
    widths: Counter[int] = field(default_factory=Counter)

    @property
    def idle_share(self) -> float:
        """The share of the devices' time in which they did not train."""
        return 1 - self.trained / (self.devices * self.makespan) if self.makespan else 0.0


def play(
    plan: Plan,
    devices: int | Sequence[str],
    speed: Speed,
    conditions: Conditions = Conditions(),
    *,
    devices_per_run: int = 1,
) -> Played:
    """Play a plan on devices that are alike, until all of it is done; ``devices_per_run`` is the scheduler's.

    ``devices``: how many there are, or the host of each. Raises KdbenchError if something fails for good.
    """
    if isinstance(devices, int):
        devices = [f"host {number // conditions.per_host}" for number in range(devices)]
    return _Simulation(plan, devices, speed, conditions, devices_per_run).run()


@dataclass(eq=False)
class _Training:
    """A job on ``width`` devices: when its training began, or will begin, and how many seconds it takes."""

    job: Job
    began: float
    seconds: float
    width: int


class _Simulation:
    """Devices, what they are at, and the events to come. It is the records, too, that the scheduler asks for."""

    def __init__(
        self, plan: Plan, hosts: Sequence[str], speed: Speed, conditions: Conditions, devices_per_run: int
    ) -> None:
        self.speed, self.conditions = speed, conditions
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.random = random.Random(conditions.seed)
        self.ready: dict[str, float] = {}
        self.training: dict[str, _Training] = {}
        self.shares: dict[str, float] = defaultdict(float)
        self.missing = {spec.id for spec in (*plan.teachers, *plan.measurements)}
        self.missing |= {run.id for cohort in plan.cohorts for run in cohort.runs}
        self.played = Played(len(hosts))
        self.slots = [Slot(f"device {number}", speed.kind, host=host) for number, host in enumerate(hosts)]
        self.scheduler = Scheduler(
            self.slots,
            self,
            lambda slot, event: None,
            lambda: self.now,
            speed=speed,
            devices_per_run=devices_per_run,
        )
        self.scheduler.add(plan)

    def run(self) -> Played:
        """Play until nothing is left."""
        if self.conditions.loss:
            self._in(self.random.expovariate(1 / self.conditions.loss), self._lose_device)
        while self.scheduler:
            for assignment in self.scheduler.assign():
                self._start(assignment)
            self.now, _, happen = heapq.heappop(self.events)
            happen()
        if self.missing or self.scheduler.outcome.failed or self.scheduler.outcome.fatal:
            raise KdbenchError(f"the plan cannot be played: {self.scheduler.outcome}")
        self.played.makespan = self.now
        return self.played

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.number), happen))

    def _start(self, assignment: Assignment) -> None:
        name, job = assignment.slot.name, assignment.job
        ready = self.ready.setdefault(name, self.now + self.conditions.start)
        began = max(self.now, ready) + self.conditions.prepare
        width = 1 + len(assignment.others)
        seconds = self._seconds(job, width) * (1 + self.conditions.save)
        self.training[name] = training = _Training(job, began, seconds, width)
        self.scheduler.handle(name, {"event": "ready"})
        self._in(began + seconds - self.now, lambda: self._end(name, training))

    def _seconds(self, job: Job, width: int) -> float:
        """What is left of a job, on so many devices."""
        if job.runs:
            left = [1 - self.shares[run.id] for run in job.runs]
            parts = [self.speed.seconds(student_work(run), width) for run in job.runs]
            own = sum(share * part for share, part in zip(left, parts, strict=True))
            making = job.cached.making if job.cached else NOTHING
            shared = shared_work(job.runs, cached=job.cached is not None)
            return own + max(left) * self.speed.seconds(shared, width) + self.speed.seconds(making)
        if job.teacher:
            work = teacher_work(job.teacher)
        else:
            assert job.measurement is not None
            work = measurement_work(job.measurement)
        return (1 - self.shares[job.ids[0]]) * self.speed.seconds(work, width)

    def _end(self, name: str, training: _Training) -> None:
        if self.training.get(name) is not training:  # its device was lost meanwhile
            return
        del self.training[name]
        self.played.trained += training.seconds * training.width
        self.played.jobs += 1
        self.played.widths[training.width] += 1
        for id in training.job.ids:
            self.missing.discard(id)
            self.scheduler.handle(name, {"event": "finished", "id": id})
        self.scheduler.handle(name, {"event": "done", "busy": []})

    def _lose_device(self) -> None:
        """A device is gone; another takes its place after a while. The only one there is comes back itself."""
        self._in(self.random.expovariate(1 / self.conditions.loss), self._lose_device)
        name = self.random.choice([*self.scheduler.slots])
        if self.ready.get(name, 0.0) > self.now:  # it is not there yet
            return
        self.played.losses += 1
        leader = self.scheduler.lent.get(name, name)
        if training := self.training.pop(leader, None):
            self._keep(leader, training)
        self.ready.pop(name, None)
        if len(self.scheduler.slots) > 1:
            if leader != name:
                self.scheduler.lose(leader, "a device beside it was lost")
            self.scheduler.remove_slot(name, "lost")
            slot = next(slot for slot in self.slots if slot.name == name)
            self._in(self.conditions.absence, lambda: self.scheduler.add_slot(slot))
        else:
            self.scheduler.lose(name, "lost")
            self.ready[name] = self.now + self.conditions.absence + self.conditions.start

    def _keep(self, name: str, training: _Training) -> None:
        """Of what a lost device has trained, what its last checkpoint holds stays."""
        trained = max(0.0, self.now - training.began)
        saved = trained - trained % self.conditions.checkpoint
        self.played.trained += trained * training.width
        self.played.repeated += (trained - saved) * training.width
        for id in training.job.ids:
            self.shares[id] += (1 - self.shares[id]) * saved / training.seconds
            place = {"epoch": 0, "batches": round(1e9 * self.shares[id])}
            self.scheduler.handle(name, {"event": "resumed", "id": id, **place})

    def has(self, stage: Stage) -> bool:
        """Whether a teacher is there."""
        return (stage.source_run or stage).id not in self.missing

    def done(self, job: Job, id: str) -> bool:
        """Whether a record is finished."""
        return id not in self.missing

    def is_taken(self, job: Job, id: str) -> bool:
        """Nobody else is at work."""
        return False

    def holder(self, job: Job, id: str) -> str:
        """Nobody else is at work."""
        return ""

    def fail(self, job: Job, id: str, failure: Failure) -> None:
        """Nothing is stored."""
