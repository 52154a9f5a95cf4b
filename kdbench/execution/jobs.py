"""Jobs for workers (a teacher, a cohort, a measurement) and the backlog they are taken from."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kdbench.planning.plan import Plan
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Stage, lineage


@dataclass(eq=False)
class Job:
    """A teacher to train, the runs of a cohort, or a measurement on finished networks.

    ``waited``: another process was at it before, ``waits_since`` then, and ``holders`` names whom the user has been told to
    wait for, by id; ``crashes``: how often a worker has died over it without getting further
    than ever before; ``furthest``: how far each of its networks has come, in epochs and batches of the next that are behind
    it; ``discard_weights``: the ids of those whose weights nothing will read.
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
    discard_weights: frozenset[str] = frozenset()

    @property
    def ids(self) -> list[str]:
        """What it trains or measures."""
        single = self.teacher or self.measurement
        return [single.id] if single else [run.id for run in self.runs]

    @cached_property
    def dependencies(self) -> dict[str, Stage]:
        """All stages of teachers, and parts of them, that must be there before it can start, by the id of their record."""
        needs: Iterable[Stage]
        if self.teacher:
            needs = [self.teacher.parent] if self.teacher.parent else []
        else:
            needs = (
                self.measurement.dependencies
                if self.measurement
                else [need for run in self.runs for need in run.dependencies]
            )
        stages = [stage for need in needs for stage in lineage(need)]
        return {stage.source_run.id if stage.source_run else stage.id: stage for stage in stages}

    def start_event(self) -> dict[str, Any]:
        """What a listener hears when it starts."""
        return {"teacher": self.teacher, "runs": self.runs, "measurement": self.measurement, "waited": self.waited}

    def message(self) -> dict[str, Any]:
        """What a worker is sent."""
        about = {"waited": self.waited, "discard_weights": sorted(self.discard_weights.intersection(self.ids))}
        if self.teacher:
            return {"teacher": self.teacher.model_dump(mode="json"), **about}
        if self.measurement:
            return {"measurement": self.measurement.model_dump(mode="json"), **about}
        return {"runs": [run.model_dump(mode="json") for run in self.runs], **about}

    def subset(self, ids: Container[str], **changes: Any) -> Job:
        """The same job with these of its runs alone; a teacher or a measurement stays what it is."""
        return replace(self, runs=tuple(run for run in self.runs if run.id in ids), **changes)

    def split(self, crashes: int) -> list[Job]:
        """Both halves of a cohort."""
        middle = len(self.runs) // 2
        parts = self.runs[:middle], self.runs[middle:]
        return [replace(self, runs=part, crashes=crashes) for part in parts]

    def record_progress(self, id: str, epoch: int, batches: int = 0) -> None:
        """A worker that gets further than any before, or leaves a checkpoint that is further, is not in a crash loop."""
        if id not in self.furthest or (epoch, batches) > self.furthest[id]:
            self.furthest[id] = epoch, batches
            self.crashes = 0


def jobs_of(plan: Plan) -> list[Job]:
    """A plan's teachers, then its cohorts, then its measurements.

    Weights trained on images that stand in for others are of no use: they are discarded unless the plan itself needs them.
    """
    jobs = [
        *(Job(teacher=teacher) for teacher in plan.teachers),
        *(Job(runs=cohort.runs) for cohort in plan.cohorts),
        *(Job(measurement=spec) for spec in plan.measurements),
    ]
    needed = {need.source_run.id for job in jobs for need in job.dependencies.values() if need.source_run}
    unread = {run.id for cohort in plan.cohorts for run in cohort.runs if run.dataset.stand_in}
    unread |= {spec.id for spec in plan.measurements if spec.dataset.stand_in}
    return [replace(job, discard_weights=frozenset(unread.intersection(job.ids) - needed)) for job in jobs]


def job_for(teacher: Stage) -> Job:
    """The job that makes a teacher: one of its own, or the run whose student it is."""
    return Job(runs=(teacher.source_run,)) if teacher.source_run else Job(teacher=teacher)


class Backlog:
    """The jobs that have not started, by their place: the lower comes first.

    ``failed`` holds the reasons of what will not come; ``give_up(job, ids, lost)`` is told which ids of a job need it.
    """

    def __init__(self, store: Store, failed: dict[str, str], give_up: Callable[[Job, list[str], str], None]) -> None:
        self.store, self.failed, self.give_up = store, failed, give_up
        self.jobs: dict[int, Job] = {}
        self.ready: list[int] = []
        self.later: list[tuple[float, int]] = []
        self.waiting: dict[str, set[int]] = {}
        self.coming: set[str] = set()
        self.done: dict[str, bool] = {}
        self.ends = [0, 0]

    def __bool__(self) -> bool:
        return bool(self.jobs)

    def add(self, jobs: Sequence[Job], *, first: bool = False) -> None:
        """Put jobs behind all others, or before them."""
        self.ends = [self.ends[0] - len(jobs), self.ends[1]] if first else [self.ends[0], self.ends[1] + len(jobs)]
        start = self.ends[0] if first else self.ends[1] - len(jobs)
        placed = dict(enumerate(jobs, start))
        self.jobs |= placed
        self.coming.update(id for job in jobs for id in job.ids)
        for place in placed:
            self._enter(place)

    def take(self) -> Job | None:
        """The first job that can start now. What it needs may have vanished since it was seen, so that is looked up again."""
        while self.later and self.later[0][0] <= time.monotonic():
            heapq.heappush(self.ready, heapq.heappop(self.later)[1])
        while self.ready:
            place = heapq.heappop(self.ready)
            if place not in self.jobs:
                continue
            job = self.jobs[place]
            self._look_again(job)
            if not self._lacking(job):
                return self.jobs.pop(place)
            self._enter(place)
        return None

    def ended(self, job: Job, again: Sequence[Job] = (), *, first: bool = False) -> None:
        """A job has come back, and ``again`` is left of it. What waits for the rest goes on, or is given up."""
        self.coming.difference_update(job.ids)
        for each in again:
            self._look_again(each)
        self.add(again, first=first)
        for id in job.ids:
            if id not in self.coming:
                self.settle(id)

    def settle(self, id: str) -> None:
        """A record is finished, has failed, or is left by the job that was at it: look after what waits for it."""
        self.done.pop(id, None)
        for place in sorted(self.waiting.pop(id, ())):
            if place in self.jobs:
                self._enter(place)

    def _enter(self, place: int) -> None:
        """Let a job be ready, or wait for what it lacks; have that made if nobody is at it."""
        job = self.jobs[place]
        lost = next((id for id in job.dependencies if id in self.failed), None)
        lacking = self._lacking(job)
        if lost:
            self._drop(place, lost)
        elif lacking:
            for id in lacking:
                self.waiting.setdefault(id, set()).add(place)
            self.add([job_for(job.dependencies[id]) for id in sorted(lacking) if id not in self.coming], first=True)
        elif job.not_before > time.monotonic():
            heapq.heappush(self.later, (job.not_before, place))
        else:
            heapq.heappush(self.ready, place)

    def _drop(self, place: int, lost: str) -> None:
        """Give up what needs something that could not be made, and what needs that in turn."""
        job = self.jobs.pop(place)
        rest = [run.id for run in job.runs if lost not in job.subset([run.id]).dependencies]
        ids = [id for id in job.ids if id not in rest]
        self.give_up(job, ids, lost)
        self.ended(job, [job.subset(rest)] if rest else [])

    def _lacking(self, job: Job) -> list[str]:
        return [id for id, need in job.dependencies.items() if not self._there(id, need)]

    def _there(self, id: str, need: Stage) -> bool:
        if id not in self.done:
            self.done[id] = self.store.record_of(need).done()
        return self.done[id]

    def _look_again(self, job: Job) -> None:
        for id in job.dependencies:
            self.done.pop(id, None)
