"""Cohorts: which runs train together, and how they are split for the slots that there are."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kdbench.planning.cost import Work, shared_work, student_work
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.suite.specs import HeadSpec, Preprocessing, RunSpec, Teacher, teaching_run


@dataclass(frozen=True)
class Cohort:
    """Runs that share one stream and one teacher and train in one process.

    ``students`` is the work of each run without what they share; it is counted where it is not given.
    """

    runs: tuple[RunSpec, ...]
    students: tuple[Work, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.students) != len(self.runs):
            object.__setattr__(self, "students", tuple(map(student_work, self.runs)))

    @property
    def teacher(self) -> Teacher | None:
        return next((run.teacher for run in self.runs if run.teacher), None)

    @property
    def head(self) -> HeadSpec | None:
        return next((run.head for run in self.runs if run.head), None)

    @property
    def teacher_view(self) -> Preprocessing | None:
        return next((run.teacher_view for run in self.runs if run.teacher_view), None)

    @cached_property
    def work(self) -> Work:
        """All runs, and the teacher pass and images that they share."""
        return sum(self.students, shared_work(self.runs))


def auxiliaries_of(spec: RunSpec) -> list[RunSpec]:
    """The runs whose students teach it, directly or through another, the first to be trained first."""
    before = teaching_run(spec.teacher)
    return [*auxiliaries_of(before), before] if before else []


def by_depth(cohorts: Iterable[Cohort]) -> list[list[Cohort]]:
    """Cohorts in an order in which each follows those that train its teacher: group after group."""
    groups: dict[int, list[Cohort]] = {}
    for cohort in cohorts:
        groups.setdefault(max(len(auxiliaries_of(run)) for run in cohort.runs), []).append(cohort)
    return [groups[depth] for depth in sorted(groups)]


def highest_load(costs: Sequence[float], slots: int, start: float = 0.0) -> float:
    """The load of the busiest slot, where the costliest job left always goes to the slot with the lowest load."""
    if len(costs) <= slots:
        return start + max(costs, default=0.0)
    loads = [start] * max(1, slots)
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def group(specs: Iterable[RunSpec]) -> list[Cohort]:
    """Put runs of one stream and one teacher together; runs without a teacher join the first cohort of their stream."""
    cohorts: dict[str, list[RunSpec]] = {}
    first_of_stream: dict[str, list[RunSpec]] = {}
    for spec in sorted(specs, key=lambda spec: spec.teacher is None):
        stream = _stream_key(spec)
        if spec.teacher is None:
            runs = first_of_stream.get(stream) or cohorts.setdefault(stream, [])
        else:
            runs = cohorts.setdefault(spec.cohort_key, [])
        runs.append(spec)
        first_of_stream.setdefault(stream, runs)
    return [Cohort(tuple(runs)) for runs in cohorts.values()]


def cap_size(cohorts: Iterable[Cohort], largest: int) -> list[Cohort]:
    """Halve cohorts until none has more than ``largest`` runs: they are in memory together.

    Where the teacher's pass costs more than its students do, four times as many stay together: halves would repeat it.
    """
    capped: list[Cohort] = []
    for cohort in cohorts:
        students = sum(work.macs for work in cohort.students)
        most = 4 * largest if cohort.work.macs > 2 * students else largest
        capped += [cohort] if len(cohort.runs) <= most else cap_size(_halves(cohort), largest)
    return capped


def split(cohorts: Iterable[Cohort], slots: int, speed: Speed = ASSUMED["cpu"]) -> list[Cohort]:
    """Halve the longest cohorts as far as that lowers the highest load of a slot. The longest come first.

    One halving may bring nothing while several do (four equal cohorts on six slots), so all are tried; the fewest that
    come within 2 % of the best are taken, for each costs another teacher pass. Among many cohorts the load is looked at after
    every few halvings.
    """
    number = itertools.count()
    queue = [(-speed.seconds(cohort.work), next(number), cohort) for cohort in cohorts]
    heapq.heapify(queue)
    best, lowest = sorted(queue), highest_load([-cost for cost, *_ in queue], slots)
    total, halved = -sum(cost for cost, *_ in queue), 0
    while slots > 1 and queue and len(queue[0][2].runs) > 1 and total / slots < 0.98 * lowest:
        cost, _, longest = heapq.heappop(queue)
        total += cost
        for half in _halves(longest):
            seconds = speed.seconds(half.work)
            total += seconds
            heapq.heappush(queue, (-seconds, next(number), half))
        halved += 1
        if halved % (1 + len(queue) // 100) == 0:
            load = highest_load([-cost for cost, *_ in queue], slots)
            if load < 0.98 * lowest:
                best, lowest = sorted(queue), load
    return [cohort for *_, cohort in best]


def _halves(cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Two cohorts with about half of the students' work each."""
    sides: tuple[list[tuple[RunSpec, Work]], ...] = ([], [])
    load = [0.0, 0.0]
    for run, work in sorted(zip(cohort.runs, cohort.students, strict=True), key=lambda pair: -pair[1].macs):
        side = int(load[1] < load[0])
        load[side] += work.macs
        sides[side].append((run, work))
    left, right = (Cohort(*map(tuple, zip(*side, strict=True))) for side in sides)
    return left, right


def _stream_key(spec: RunSpec) -> str:
    return f"{spec.stream_id}-{spec.recipe.precision}"
