"""Jobs for workers (a teacher, a cohort, a measurement) and the backlog they are taken from."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from kdbench.planning.cohorts import Cohort, Task, recipes_of, tasks, widened
from kdbench.planning.output_cache import CachedOutputs
from kdbench.planning.plan import Plan
from kdbench.planning.speed import Speed
from kdbench.suite.components import Recipe, usable_devices
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Stage, lineage


@dataclass(eq=False)
class Job:
    """A teacher to train, the runs of a cohort, or a measurement on finished networks.

    ``waited``: another process was at it before, ``waits_since`` then, and ``holders`` names whom the user has been told to
    wait for, by id; ``crashes``: how often a worker has died over it without getting further than ever before; ``furthest``:
    how many epochs, and batches of the next, each of its networks has behind it; ``devices``: on how many of a host it trains
    at the same time; ``discard_weights``: the ids of those whose weights nothing will read; ``cached``: the outputs that take
    the place of a cohort's teacher.
    """

    teacher: Stage | None = None
    runs: tuple[RunSpec, ...] = ()
    measurement: ProbeSpec | SimilaritySpec | None = None
    not_before: float = 0.0
    waited: bool = False
    waits_since: float = 0.0
    holders: dict[str, str] = field(default_factory=dict)
    crashes: int = 0
    furthest: dict[str, tuple[int, int]] = field(default_factory=dict)
    devices: int = 1
    discard_weights: frozenset[str] = frozenset()
    cached: CachedOutputs | None = None

    @property
    def ids(self) -> list[str]:
        """What it trains or measures."""
        single = self.teacher or self.measurement
        return [single.id] if single else [run.id for run in self.runs]

    @property
    def recipes(self) -> list[Recipe]:
        """Those of what it trains on batches that can be divided among devices; cached outputs are for one."""
        return [] if self.cached else recipes_of(self.teacher, self.runs)

    @cached_property
    def dependencies(self) -> dict[str, Stage]:
        """All stages of teachers, and adapters on them, that must be there before it can start, by the id of their record."""
        if self.teacher:
            stages = lineage(self.teacher)[:-1]
        else:
            users = [self.measurement] if self.measurement else self.runs
            stages = [stage for user in users for need in user.dependencies for stage in lineage(need)]
        return {stage.source_run.id if stage.source_run else stage.id: stage for stage in stages}

    def message(self) -> dict[str, Any]:
        """What a worker is sent."""
        specs: dict[str, Any]
        if single := self.teacher or self.measurement:
            specs = {"teacher" if self.teacher else "measurement": single.model_dump(mode="json")}
        else:
            specs = {"runs": [run.model_dump(mode="json") for run in self.runs], "cached": self.cached is not None}
        return {**specs, "waited": self.waited, "discard_weights": sorted(self.discard_weights.intersection(self.ids))}

    def subset(self, ids: Container[str], **changes: Any) -> Job:
        """The same job with these of its runs alone; a teacher or a measurement stays what it is."""
        return replace(self, runs=tuple(run for run in self.runs if run.id in ids), **changes)

    def split(self, crashes: int) -> list[Job]:
        """Both halves of a cohort."""
        middle = len(self.runs) // 2
        return [replace(self, runs=half, crashes=crashes) for half in (self.runs[:middle], self.runs[middle:])]

    def record_progress(self, id: str, epoch: int, batches: int = 0) -> bool:
        """A worker that gets further than any before, or leaves a checkpoint that is further, is not in a crash loop."""
        further = id not in self.furthest or (epoch, batches) > self.furthest[id]
        if further:
            self.furthest[id] = epoch, batches
            self.crashes = 0
        return further


def jobs_of(plan: Plan) -> list[Job]:
    """A plan's teachers, then its cohorts, then its measurements.

    Weights trained on images that stand in for others are of no use: they are discarded unless the plan itself needs them.
    """
    jobs = [
        *(Job(teacher=teacher) for teacher in plan.teachers),
        *(cohort_job(cohort) for cohort in plan.cohorts),
        *(Job(measurement=spec) for spec in plan.measurements),
    ]
    needed = {need.source_run.id for job in jobs for need in job.dependencies.values() if need.source_run}
    unread = {run.id for cohort in plan.cohorts for run in cohort.runs if run.dataset.stand_in}
    unread |= {spec.id for spec in plan.measurements if spec.dataset.stand_in}
    return [replace(job, discard_weights=frozenset(unread.intersection(job.ids) - needed)) for job in jobs]


def cohort_job(cohort: Cohort, discard_weights: frozenset[str] = frozenset()) -> Job:
    """The job that trains a cohort."""
    ids = [run.id for run in cohort.runs]
    return Job(runs=cohort.runs, discard_weights=discard_weights.intersection(ids), cached=cohort.cached)


def spread(jobs: Sequence[Job], per_run: int, slots: int, most: int, speed: Speed) -> Sequence[Job]:
    """The same jobs, each to be trained on ``per_run`` devices of a host, which has ``most``.

    0: on several where others would wait for it (``widened``).
    """
    if per_run == 1:
        return jobs
    if per_run:
        for job in jobs:
            job.devices = usable_devices(job.recipes, min(per_run, most)) if job.recipes else 1
        return jobs
    trained = [job for job in jobs if not job.measurement]
    found = widened([_task(job, speed, most) for job in trained], slots)
    for job, task in zip(trained, found, strict=True):
        job.devices = task.devices
    return jobs


def _task(job: Job, speed: Speed, most: int) -> Task:
    if job.teacher:
        return tasks([job.teacher], (), speed, most)[0]
    return Cohort(job.runs, cached=job.cached).task(speed, most)


def job_for(teacher: Stage) -> Job:
    """The job that makes a teacher: one of its own, or the run whose student it is."""
    return Job(runs=(teacher.source_run,)) if teacher.source_run else Job(teacher=teacher)


FIRST, TEACHERS, COHORTS, MEASUREMENTS, LAST = range(5)

Place = tuple[int, int]
"""A job's place in line: one of the five, and a number within."""


class Backlog:
    """The jobs that have not started: in line by their place, waiting for one thing that they lack, or for a time to come.

    ``has(stage)`` says whether a teacher is there; ``failed`` holds the reasons of what will not come; ``give_up(job, ids,
    lost)`` is told which ids of a job need it; ``spread(jobs)`` sets on how many devices those train that are added for a
    teacher that is gone; ``clock`` gives seconds.
    """

    def __init__(
        self,
        has: Callable[[Stage], bool],
        failed: dict[str, str],
        give_up: Callable[[Job, list[str], str], None],
        spread: Callable[[Sequence[Job]], Sequence[Job]],
        clock: Callable[[], float],
    ) -> None:
        self.has, self.failed, self.give_up, self.spread, self.clock = has, failed, give_up, spread, clock
        self.line: list[tuple[Place, Job]] = []
        self.later: list[tuple[float, Place, Job]] = []
        self.waiting: dict[str, list[tuple[Place, Job]]] = {}
        self.coming: set[str] = set()
        self.added = 0

    def __bool__(self) -> bool:
        return bool(self.line or self.later or self.waiting)

    def add(self, jobs: Sequence[Job]) -> None:
        """Put jobs of a plan behind those of their kind: teachers, cohorts, measurements."""
        for job in jobs:
            rank = TEACHERS if job.teacher else MEASUREMENTS if job.measurement else COHORTS
            self._put((rank, self.added), job)

    def add_first(self, jobs: Sequence[Job]) -> None:
        """Put jobs before all others, the first of them foremost."""
        for job in reversed(jobs):
            self._put((FIRST, -self.added), job)

    def _put(self, place: Place, job: Job) -> None:
        self.added += 1
        self.coming.update(job.ids)
        heapq.heappush(self.later, (job.not_before, place, job))

    def take(self) -> Job | None:
        """The first job that can start now.

        A job that lacks something waits for it, once, until it settles; what nobody is at is put first. What needs something
        that has failed is given up.
        """
        while True:
            while self.later and self.later[0][0] <= self.clock():
                heapq.heappush(self.line, heapq.heappop(self.later)[1:])
            if not self.line:
                return None
            place, job = heapq.heappop(self.line)
            lost = next((id for id in job.dependencies if id in self.failed), None)
            if lost:
                self._drop(job, lost)
            elif lacking := self._lacking(job):
                self.waiting.setdefault(lacking[0], []).append((place, job))
                gone = [job_for(job.dependencies[id]) for id in lacking if id not in self.coming]
                self.add_first(self.spread(gone))
            else:
                return job

    def withdraw_cohorts(self) -> list[Job]:
        """Take out the plan's cohorts that have not started."""
        entries = [(job.not_before, place, job) for place, job in chain(self.line, *self.waiting.values())] + self.later
        self.line, self.later, self.waiting = [], [], {}
        cohorts = []
        for entry in entries:
            _, (rank, _), job = entry
            if rank == COHORTS:
                cohorts.append(job)
                self.coming.difference_update(job.ids)
            else:
                heapq.heappush(self.later, entry)
        return cohorts

    def ended(self, job: Job, again: Sequence[Job] = (), *, first: bool = False) -> None:
        """A job has come back, and ``again`` is left of it. What waits for the rest goes on, or is given up."""
        self.coming.difference_update(job.ids)
        if first:
            self.add_first(again)
        else:
            for left in again:
                self._put((LAST, self.added), left)
        for id in job.ids:
            if id not in self.coming:
                self.settle(id)

    def settle(self, id: str) -> None:
        """A record is finished, has failed, or is left by the job that was at it: look after what waits for it."""
        for entry in self.waiting.pop(id, ()):
            heapq.heappush(self.line, entry)

    def _drop(self, job: Job, lost: str) -> None:
        """Give up what needs something that could not be made; what needs that in turn follows."""
        spared = [run.id for run in job.runs if lost not in job.subset([run.id]).dependencies]
        self.give_up(job, [id for id in job.ids if id not in spared], lost)
        self.ended(job, [job.subset(spared)] if spared else [])

    def _lacking(self, job: Job) -> list[str]:
        """What it needs and is not there, which may have been there before: records are read anew."""
        return sorted(id for id, need in job.dependencies.items() if not self.has(need))
