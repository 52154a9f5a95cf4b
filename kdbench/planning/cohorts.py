"""Cohorts: which runs train together, and how they are split for the slots that there are."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from kdbench.planning.cost import Work, shared_work, student_work, teacher_work
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.suite.specs import HeadSpec, Preprocessing, RunSpec, Stage, Teacher, lineage, teaching_run


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

    def task(self, speed: Speed) -> Task:
        """What it takes and needs."""
        needs = {need.id: need for run in self.runs for need in run.dependencies}
        return Task(speed.seconds(self.work), tuple(run.id for run in self.runs), frozenset(_ids(needs.values())))

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


@dataclass(frozen=True)
class Task:
    """A job as far as its place and time matter: its seconds, what it gives, and what it waits for if that is to be made."""

    seconds: float
    gives: tuple[str, ...]
    needs: frozenset[str]


def tasks(teachers: Iterable[Stage], cohorts: Iterable[Cohort], speed: Speed) -> list[Task]:
    """Teachers and cohorts as tasks."""
    made = [
        Task(speed.seconds(teacher_work(teacher)), (teacher.id,), frozenset(_ids(lineage(teacher)[:-1])))
        for teacher in teachers
    ]
    return made + [cohort.task(speed) for cohort in cohorts]


def by_path(jobs: Sequence[Task]) -> list[int]:
    """The order in which tasks should start: first where the longest chain of tasks begins. Their numbers."""
    makers = {id: number for number, task in enumerate(jobs) for id in task.gives}
    followers: dict[int, list[int]] = defaultdict(list)
    for number, task in enumerate(jobs):
        for maker in {makers[id] for id in task.needs if id in makers}:
            followers[maker].append(number)

    @cache
    def path(number: int) -> float:
        return jobs[number].seconds + max(map(path, followers[number]), default=0.0)

    return sorted(range(len(jobs)), key=lambda number: -path(number))


def makespan(jobs: Sequence[Task], slots: int) -> float:
    """When the last task ends, if a free slot always takes the first in order of ``by_path`` that has what it needs."""
    order = by_path(jobs)
    coming = {id for task in jobs for id in task.gives}
    lacks = [set(jobs[number].needs & coming) for number in order]
    waiting: dict[str, list[int]] = defaultdict(list)
    for place, needs in enumerate(lacks):
        for id in needs:
            waiting[id].append(place)
    ready = [place for place, needs in enumerate(lacks) if not needs]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + jobs[order[place]].seconds, place))
        now, ended = heapq.heappop(running)
        for id in jobs[order[ended]].gives:
            for place in waiting[id]:
                lacks[place].discard(id)
                if not lacks[place]:
                    heapq.heappush(ready, place)
    return now


def _ids(stages: Iterable[Stage]) -> list[str]:
    """The ids of the records of stages and of all that they stand on."""
    return [(each.source_run or each).id for stage in stages for each in lineage(stage)]


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


def split(
    cohorts: Iterable[Cohort], slots: int, speed: Speed = ASSUMED["cpu"], teachers: Sequence[Stage] = ()
) -> list[Cohort]:
    """Halve the longest cohorts as far as that lowers the makespan, with the ``teachers`` that are to be made before.

    One halving may bring nothing while several do (four equal cohorts on six slots), so all are tried, and looked at
    after every few; the fewest that come within 2 % of the best are taken, for each costs another teacher pass.
    """
    number = itertools.count()

    def entry(cohort: Cohort) -> tuple[float, int, Cohort, Task]:
        task = cohort.task(speed)
        return -task.seconds, next(number), cohort, task

    queue = sorted(map(entry, cohorts))
    fixed = tasks(teachers, (), speed)
    total = sum(task.seconds for task in fixed) - sum(seconds for seconds, *_ in queue)
    best, lowest, looked = queue.copy(), math.inf, 0
    single: list[tuple[float, int, Cohort, Task]] = []
    while slots > 1 and total / slots < 0.98 * lowest:
        count = len(queue) + len(single)
        if count >= looked * 1.05:
            looked, current = count, single + queue
            end = makespan([*fixed, *(task for *_, task in current)], slots)
            if end < 0.98 * lowest:
                best, lowest = current, end
        if not queue:
            break
        longest = heapq.heappop(queue)
        if len(longest[2].runs) == 1:
            single.append(longest)
            continue
        total += longest[0]
        for half in map(entry, _halves(longest[2])):
            heapq.heappush(queue, half)
            total -= half[0]
    return [cohort for *_, cohort, _ in sorted(best)]


def _halves(cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Two cohorts with about half of the students' work each.

    Runs whose terms need parts on the teacher go to one side, if they are not far from half: the others need not wait.
    """
    pairs = sorted(zip(cohort.runs, cohort.students, strict=True), key=lambda pair: -pair[1].macs)
    waiting = sum(work.macs for run, work in pairs if run.adapters)
    apart = 0.25 < waiting / max(1.0, sum(work.macs for _, work in pairs)) < 0.75
    sides: tuple[list[tuple[RunSpec, Work]], ...] = ([], [])
    load = [0.0, 0.0]
    for run, work in pairs:
        side = bool(run.adapters) if apart else load[1] < load[0]
        load[side] += work.macs
        sides[side].append((run, work))
    left, right = (Cohort(*map(tuple, zip(*side, strict=True))) for side in sides)
    return left, right


def _stream_key(spec: RunSpec) -> str:
    return f"{spec.stream_id}-{spec.recipe.precision}"
