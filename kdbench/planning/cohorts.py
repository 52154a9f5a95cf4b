"""Cohorts: which runs train together, and how they are split for the slots that there are."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from kdbench.planning.cost import NOTHING, Work, shared_work, student_work, teacher_work
from kdbench.planning.output_cache import CachedOutputs
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.suite.components import Recipe, usable_devices
from kdbench.suite.specs import (
    HeadSpec,
    Preprocessing,
    RunSpec,
    SelfSupervised,
    Stage,
    Teacher,
    lineage,
    teaching_run,
)


@dataclass(frozen=True)
class Cohort:
    """Runs that share one stream and one teacher and train in one process.

    ``students`` is the work of each run without what they share; it is counted where it is not given. ``cached`` outputs
    take the place of the teacher's passes.
    """

    runs: tuple[RunSpec, ...]
    students: tuple[Work, ...] = field(default=(), compare=False)
    cached: CachedOutputs | None = field(default=None, compare=False)

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

    def subset(self, ids: Container[str]) -> Cohort:
        """The same with these of its runs alone."""
        runs = tuple(run for run in self.runs if run.id in ids)
        return self if len(runs) == len(self.runs) else Cohort(runs, cached=self.cached)

    def task(self, speed: Speed, most: int = 1) -> Task:
        """What it takes and needs, on up to ``most`` devices."""
        needs = {need.id: need for run in self.runs for need in run.dependencies}
        ids = tuple(run.id for run in self.runs)
        recipes = [] if self.cached else recipes_of(None, self.runs)  # cached outputs are for one device
        return _task(self.work, ids, needs.values(), recipes, speed, most)

    @cached_property
    def work(self) -> Work:
        """All runs, and the teacher pass or its outputs, and the images, that they share."""
        making = self.cached.making if self.cached else NOTHING
        return sum(self.students, shared_work(self.runs, cached=self.cached is not None) + making)


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
    """A job as far as its place and time matter: its seconds, what it gives, and what it waits for if that is to be made.

    ``devices`` train it together; ``quicker``: on how many more it would take how many seconds, as far as that is worthwhile.
    """

    seconds: float
    gives: tuple[str, ...]
    needs: frozenset[str]
    devices: int = 1
    quicker: tuple[tuple[int, float], ...] = ()


def tasks(teachers: Iterable[Stage], cohorts: Iterable[Cohort], speed: Speed, most: int = 1) -> list[Task]:
    """Teachers and cohorts as tasks, on up to ``most`` devices."""
    made = [
        _task(teacher_work(stage), (stage.id,), lineage(stage)[:-1], recipes_of(stage), speed, most)
        for stage in teachers
    ]
    return made + [cohort.task(speed, most) for cohort in cohorts]


def _task(
    work: Work, gives: tuple[str, ...], needs: Iterable[Stage], recipes: Sequence[Recipe], speed: Speed, most: int
) -> Task:
    """Several devices are worthwhile where, added up, they take at most twice the time of one; 1.02 times for several runs,
    which can be split instead.
    """
    alone = speed.seconds(work)
    most_in_all = alone * (2 if len(gives) == 1 else 1.02)
    counts = sorted({usable_devices(recipes, count) for count in range(2, most + 1)} - {1}) if recipes else []
    quicker = [(count, speed.seconds(work, count)) for count in counts]
    worthwhile = tuple((count, seconds) for count, seconds in quicker if count * seconds <= most_in_all)
    return Task(alone, gives, frozenset(_ids(needs)), quicker=worthwhile)


def recipes_of(teacher: Stage | None, runs: Iterable[RunSpec] = ()) -> list[Recipe]:
    """Those of what is trained on batches that can be divided among devices; SimCLR's cannot."""
    if isinstance(teacher, SelfSupervised):
        return []
    own = [teacher.recipe] if teacher and teacher.recipe else []
    return own + [run.recipe for run in runs]


def widened(jobs: Sequence[Task], slots: int) -> list[Task]:
    """The same tasks, some of them on several devices, as far as that lowers the makespan.

    They are those in a chain of tasks, each of which needs the one before, that takes longer than all would take if the slots
    shared them equally, or a fifth less or more; they get the fewest devices that bring the chain down to that.
    """
    best = list(jobs)
    if not any(task.quicker for task in jobs):
        return best
    fair = sum(task.seconds for task in jobs) / slots
    through = _chains(jobs)
    if max(through) <= 0.8 * fair:
        return best
    lowest = makespan(jobs, slots)
    for goal in (1.2 * fair, fair, 0.8 * fair):
        wider = [
            _widened(task, goal / chain) if chain > goal else task for task, chain in zip(jobs, through, strict=True)
        ]
        end = makespan(wider, slots)
        if end < 0.98 * lowest:
            best, lowest = wider, end
    return best


def _widened(task: Task, factor: float) -> Task:
    """On the fewest devices that bring its time down by a factor; where none do, on the most that are worthwhile."""
    if not task.quicker:
        return task
    enough = (each for each in task.quicker if each[1] <= factor * task.seconds)
    devices, seconds = next(enough, task.quicker[-1])
    return replace(task, devices=devices, seconds=seconds)


def by_path(jobs: Sequence[Task]) -> list[int]:
    """The order in which tasks should start: first where the longest chain of tasks begins. Their numbers."""
    paths = _paths(jobs, _followers(jobs))
    return sorted(range(len(jobs)), key=lambda number: -paths[number])


def _chains(jobs: Sequence[Task]) -> list[float]:
    """The seconds of the longest chain of tasks through each."""
    followers = _followers(jobs)
    makers: dict[int, list[int]] = defaultdict(list)
    for maker, after in followers.items():
        for number in after:
            makers[number].append(maker)
    paths = zip(_paths(jobs, makers), _paths(jobs, followers), jobs, strict=True)
    return [before + after - task.seconds for before, after, task in paths]


def _followers(jobs: Sequence[Task]) -> Mapping[int, list[int]]:
    """By the number of a task, those that need what it gives."""
    makers = {id: number for number, task in enumerate(jobs) for id in task.gives}
    followers: dict[int, list[int]] = defaultdict(list)
    for number, task in enumerate(jobs):
        for maker in {makers[id] for id in task.needs if id in makers}:
            followers[maker].append(number)
    return followers


def _paths(jobs: Sequence[Task], following: Mapping[int, Sequence[int]]) -> list[float]:
    """The seconds of the longest chain that begins with each task."""

    @cache
    def path(number: int) -> float:
        return jobs[number].seconds + max(map(path, following.get(number, ())), default=0.0)

    return [path(number) for number in range(len(jobs))]


def makespan(jobs: Sequence[Task], slots: int) -> float:
    """When the last task ends, if free slots always take the first in order of ``by_path`` that has what it needs."""
    order = by_path(jobs)
    coming = {id for task in jobs for id in task.gives}
    lacks = [set(jobs[number].needs & coming) for number in order]
    waiting: dict[str, list[int]] = defaultdict(list)
    for place, needs in enumerate(lacks):
        for id in needs:
            waiting[id].append(place)
    ready = [place for place, needs in enumerate(lacks) if not needs]
    running: list[tuple[float, int]] = []
    now, free = 0.0, slots
    while ready or running:
        while ready and (free >= jobs[order[ready[0]]].devices or not running):
            place = heapq.heappop(ready)
            free -= jobs[order[place]].devices
            heapq.heappush(running, (now + jobs[order[place]].seconds, place))
        now, ended = heapq.heappop(running)
        free += jobs[order[ended]].devices
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
    cohorts: Iterable[Cohort], slots: int, speed: Speed = ASSUMED["cpu"], teachers: Sequence[Stage] = (), most: int = 1
) -> list[Cohort]:
    """Halve the longest cohorts as far as that lowers the makespan, with the ``teachers`` that are to be made before.

    Up to ``most`` devices train a job together where others would wait for it.

    One halving may bring nothing while several do (four equal cohorts on six slots), so all are tried, and looked at
    after every few; the fewest that come within 2 % of the best are taken, for each costs another teacher pass.
    """
    number = itertools.count()

    def entry(cohort: Cohort) -> tuple[float, int, Cohort, Task]:
        task = cohort.task(speed, most)
        return -task.seconds, next(number), cohort, task

    queue = sorted(map(entry, cohorts))
    fixed = tasks(teachers, (), speed, most)
    total = sum(task.seconds for task in fixed) - sum(seconds for seconds, *_ in queue)
    best, lowest, looked = queue.copy(), math.inf, 0
    single: list[tuple[float, int, Cohort, Task]] = []
    while slots > 1 and total / slots < 0.98 * lowest:
        count = len(queue) + len(single)
        if count >= looked * 1.05:
            looked, current = count, single + queue
            end = makespan(widened([*fixed, *(task for *_, task in current)], slots), slots)
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
    cached = cohort.cached and cohort.cached.share(1 / 2)
    left, right = (Cohort(tuple(run for run, _ in side), tuple(work for _, work in side), cached) for side in sides)
    return left, right


def _stream_key(spec: RunSpec) -> str:
    return f"{spec.stream_id}-{spec.recipe.precision}"
