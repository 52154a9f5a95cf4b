"""The plan: which teachers and cohorts to train, what is done already, what changed, and how long the rest takes."""

from __future__ import annotations

import heapq
from bisect import insort_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from kdbench.planning.cost import cohort_cost, measurement_cost, student_cost, teacher_cost
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.networks import info
from kdbench.suite.specs import (
    HeadSpec,
    Imported,
    Preprocessing,
    RunSpec,
    Stage,
    Teacher,
    digest,
    lineage,
    teaching_run,
    trained_stages,
)


@dataclass(frozen=True)
class Cohort:
    """Runs that share one stream and one teacher and train in one process."""

    runs: tuple[RunSpec, ...]

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
    def cost(self) -> float:
        """Multiply-accumulates of all runs and of the teacher pass that they share."""
        return cohort_cost(self.runs)


@dataclass(frozen=True)
class Plan:
    """What is left to do. Teachers and cohorts come in an order in which each follows what it needs, then measurements."""

    teachers: tuple[Stage, ...]
    cohorts: tuple[Cohort, ...]
    runs_done: int
    teachers_done: int
    measurements: tuple[ProbeSpec | SimilaritySpec, ...] = ()
    measurements_done: int = 0

    @property
    def runs(self) -> int:
        return sum(len(cohort.runs) for cohort in self.cohorts)

    @property
    def cost(self) -> float:
        """Multiply-accumulates of all that is left."""
        return self._other_cost + sum(cohort.cost for cohort in self.cohorts)

    @property
    def cost_alone(self) -> float:
        """The same if every run were trained by itself, with its own teacher passes."""
        return self._other_cost + sum(cohort_cost([run]) for cohort in self.cohorts for run in cohort.runs)

    @property
    def _other_cost(self) -> float:
        return sum(map(teacher_cost, self.teachers)) + sum(map(measurement_cost, self.measurements))

    def split_for(self, slots: int) -> Plan:
        """The same for so many slots: cohorts are halved while that shortens the makespan."""
        parts = by_depth(self.cohorts)
        return replace(self, cohorts=tuple(cohort for part in parts for cohort in split(part, slots)))

    def makespan(self, slots: int) -> float:
        """Multiply-accumulates until the last slot is idle, if each job goes to the slot that is free first."""
        steps = [
            [teacher_cost(teacher) for teacher in self.teachers],
            *([cohort.cost for cohort in cohorts] for cohorts in by_depth(self.cohorts)),
            [measurement_cost(spec) for spec in self.measurements],
        ]
        end = 0.0
        for costs in steps:
            end = highest_load(costs, slots, end)
        return end


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


def make_plan(
    specs: Iterable[RunSpec],
    store: Store,
    *,
    retry_diverged: bool = False,
    teachers: Iterable[Stage] = (),
    measurements: Iterable[ProbeSpec | SimilaritySpec] = (),
    largest: int | None = None,
) -> Plan:
    """Plan the runs that have no result yet, and the ``teachers`` that are wanted whether or not such a run needs them.

    A teacher that was begun, or quarantined as damaged, is made also where its runs are done: their table shows it.
    Runs whose students teach others, or are measured, are added where they are needed. What diverged, run or teacher, stays
    so unless ``retry_diverged``; what would be measured on it is left out. No cohort has more than ``largest`` runs
    (``cap_size``).
    """
    distinct = {spec.id: spec for spec in measurements}
    unmeasured = [spec for spec in distinct.values() if store.measured(spec) is None]
    specs = list(specs)
    stages = all_stages(specs, distinct.values())
    specs += [need.source_run for spec in unmeasured for need in spec.dependencies if need.source_run]
    todo: dict[str, RunSpec] = {}
    done = 0
    diverged: dict[str, bool] = {}
    for spec in {spec.id: spec for spec in specs}.values():
        record = store.run(spec.id)
        settled = record.done() or (not retry_diverged and _blocked_by_divergence(spec, record, store, diverged))
        done += settled
        if not settled:
            todo |= {each.id: each for each in (*_unfinished(auxiliaries_of(spec), store), spec)}
    if not retry_diverged:
        unmeasured = [
            spec for spec in unmeasured if not _blocked_by_divergence(spec, store.measurement(spec.id), store, diverged)
        ]
    wanted = [*(need for spec in (*todo.values(), *unmeasured) for need in spec.dependencies), *teachers]
    wanted += [stage for stage in stages if store.unfinished(stage)]
    needed = {stage.id: stage for teacher in wanted for stage in trained_stages(teacher)}
    missing = [teacher for id, teacher in needed.items() if not store.teacher(id).done()]
    grouped = by_depth(group(todo.values()))
    cohorts = [cohort for part in grouped for cohort in split(cap_size(part, largest or len(todo)), 1)]
    ready = len(needed) - len(missing)
    return Plan(tuple(missing), tuple(cohorts), done, ready, tuple(unmeasured), len(distinct) - len(unmeasured))


def all_stages(specs: Iterable[RunSpec], measurements: Iterable[ProbeSpec | SimilaritySpec]) -> Iterable[Stage]:
    """All stages of teachers on which runs, those before them, or measurements stand, each once."""
    users = (*(each for spec in specs for each in (*auxiliaries_of(spec), spec)), *measurements)
    needs = {need.id: need for user in users for need in user.dependencies}
    return {stage.id: stage for need in needs.values() for stage in trained_stages(need)}.values()


def _unfinished(chain: list[RunSpec], store: Store) -> list[RunSpec]:
    """What is to be trained of runs that each need the one before: nothing that comes before a finished one."""
    finished = [position for position, spec in enumerate(chain) if store.run(spec.id).done()]
    return chain[finished[-1] + 1 :] if finished else chain


def _blocked_by_divergence(
    spec: RunSpec | ProbeSpec | SimilaritySpec, record: Record, store: Store, diverged: dict[str, bool]
) -> bool:
    """Whether a run, a measurement or something that it needs diverged. ``diverged`` remembers the teachers looked up."""
    before = [run for need in spec.dependencies if (run := lineage(need)[0].source_run)]
    runs = [(run, store.run(run.id)) for run in before]
    if any(_blocked_by_divergence(run, below, store, diverged) for run, below in runs if not below.done()):
        return True
    stages = [stage for need in spec.dependencies for stage in trained_stages(need)]
    for stage in stages:
        if stage.id not in diverged:
            diverged[stage.id] = store.teacher(stage.id).diverged()
    return any(diverged[stage.id] for stage in stages) or record.diverged()


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
        students = sum(map(student_cost, cohort.runs))
        most = 4 * largest if cohort.cost > 2 * students else largest
        capped += [cohort] if len(cohort.runs) <= most else cap_size(_halves(cohort), largest)
    return capped


def split(cohorts: list[Cohort], slots: int) -> list[Cohort]:
    """Halve the costliest cohorts as far as that lowers the highest load of a slot. The costliest come first.

    One halving may bring nothing while several do (four equal cohorts on six slots), so all are tried; the fewest that
    come within 2 % of the best are taken, for each costs another teacher pass.
    """
    best = sorted(cohorts, key=attrgetter("cost"), reverse=True)
    current, lowest = best.copy(), highest_load([cohort.cost for cohort in best], slots)
    total = sum(cohort.cost for cohort in best)
    for _ in range(2 * slots if slots > 1 else 0):
        if not current or len(current[0].runs) == 1:
            break
        total -= current[0].cost
        for half in reversed(_halves(current.pop(0))):
            insort_left(current, half, key=lambda cohort: -cohort.cost)
            total += half.cost
        worthwhile = 0.98 * lowest
        if total / slots >= worthwhile:
            break
        load = highest_load([cohort.cost for cohort in current], slots)
        if load < worthwhile:
            best, lowest = current.copy(), load
    return best


def _halves(cohort: Cohort) -> tuple[Cohort, Cohort]:
    left: list[RunSpec] = []
    right: list[RunSpec] = []
    load = [0.0, 0.0]
    for run in sorted(cohort.runs, key=student_cost, reverse=True):
        side = int(load[1] < load[0])
        load[side] += student_cost(run)
        (left, right)[side].append(run)
    return Cohort(tuple(left)), Cohort(tuple(right))


def _stream_key(spec: RunSpec) -> str:
    return f"{spec.stream_id}-{spec.recipe.precision}"


def changed_plugins(specs: Iterable[RunSpec], store: Store) -> list[str]:
    """One line for each plug-in, and each set of own images, of which runs with other content are finished.

    Only where some are to do are records read.
    """
    own = (spec for spec in specs if (spec.plugins or spec.dataset.images) and not store.run(spec.id).done())
    planned = {digest(_bare(spec.canonical())): spec for spec in own}
    changed: Counter[str] = Counter()
    for record in store.records("runs") if planned else ():
        stored = record.spec()
        spec = planned.get(digest(_bare(stored)))
        if spec and record.done():
            before = hashes_of_plugins(stored)
            changed.update(f"{name} has" for name, sha256 in spec.plugins.items() if before.get(name) != sha256)
            if spec.dataset.images and stored["dataset"]["images"]["sha256"] != spec.dataset.images.sha256:
                changed[f"the images of {spec.dataset.name} have"] += 1
    return [
        f"{what} changed since {count} finished run{'s' if count > 1 else ''}: not reused."
        for what, count in changed.items()
    ]


def _bare(value: Any) -> Any:
    """A spec without the hashes of plug-ins' code; of own images, classes and size stand for all."""
    if isinstance(value, dict):
        if "class_names" in value:
            return [value["class_names"], value["size"]]
        return {key: _bare(each) for key, each in value.items() if key != "source_sha256"}
    return [_bare(each) for each in value] if isinstance(value, list) else value


def hashes_of_plugins(value: Any) -> dict[str, str]:
    """The hashes of plug-ins' code in a stored spec, by the names of the terms."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    name = next((value[key] for key in ("name", "term", "build") if key in value), "")
    own = {name: str(value["source_sha256"])} if "source_sha256" in value else {}
    return {**own, **{name: each for inner in value.values() for name, each in hashes_of_plugins(inner).items()}}


def missing_files(plan: Plan, data: Path) -> list[str]:
    """One message for each data set and file of weights that ``data`` lacks: what is missing and how to get it."""
    used = [run.dataset for cohort in plan.cohorts for run in cohort.runs]
    used += [teacher.dataset for teacher in plan.teachers if teacher.dataset]
    used += [spec.dataset for spec in plan.measurements]
    sets = {spec.name: spec.facts for spec in used if not spec.stand_in}
    messages = [facts.how_to_get(data) for _, facts in sorted(sets.items()) if facts.missing(data)]
    folder = data / "weights"
    for teacher in plan.teachers:
        public = info(teacher.network).public
        starts_from_it = isinstance(teacher, Imported) and public and teacher.weights.source == public.source
        if public and starts_from_it and not (folder / public.file).is_file():
            messages.append(public.how_to_get(folder))
    return messages
