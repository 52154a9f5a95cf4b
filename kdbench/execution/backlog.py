"""What is still to be done, in order, and which of it can start.

What a job costs here does not depend on how many others there are: the store is read when a job comes, when it is to start,
and when something that others wait for has ended.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence

from kdbench.execution.job import Job, job_for
from kdbench.store.store import Store
from kdbench.suite.specs import TeacherSpec


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
        lost = next((id for id in job.needs if id in self.failed), None)
        lacking = self._lacking(job)
        if lost:
            self._drop(place, lost)
        elif lacking:
            for id in lacking:
                self.waiting.setdefault(id, set()).add(place)
            self.add([job_for(job.needs[id]) for id in sorted(lacking) if id not in self.coming], first=True)
        elif job.not_before > time.monotonic():
            heapq.heappush(self.later, (job.not_before, place))
        else:
            heapq.heappush(self.ready, place)

    def _drop(self, place: int, lost: str) -> None:
        """Give up what needs something that could not be made, and what needs that in turn."""
        job = self.jobs.pop(place)
        rest = [run.id for run in job.runs if lost not in job.only([run.id]).needs]
        ids = [id for id in job.ids if id not in rest]
        self.give_up(job, ids, lost)
        self.ended(job, [job.only(rest)] if rest else [])

    def _lacking(self, job: Job) -> list[str]:
        return [id for id, need in job.needs.items() if not self._there(id, need)]

    def _there(self, id: str, need: TeacherSpec) -> bool:
        if id not in self.done:
            self.done[id] = self.store.record_of(need).done()
        return self.done[id]

    def _look_again(self, job: Job) -> None:
        for id in job.needs:
            self.done.pop(id, None)
