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

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network
from kdbench.planning.cost import cohort_cost, measurement_cost, student_cost, teacher_cost
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import (
    HeadSpec,
    Imported,
    Preprocessing,
    RunSpec,
    Stage,
    StudentOf,
    Teacher,
    digest,
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
        beside = sum(map(teacher_cost, self.teachers)) + sum(map(measurement_cost, self.measurements))
        return beside + sum(cohort.cost for cohort in self.cohorts)

    @property
    def cost_alone(self) -> float:
        """The same if every run were trained by itself, with its own teacher passes."""
        runs = [run for cohort in self.cohorts for run in cohort.runs]
        beside = sum(map(teacher_cost, self.teachers)) + sum(map(measurement_cost, self.measurements))
        return beside + sum(cohort_cost([run]) for run in runs)

    def on(self, slots: int) -> Plan:
        """The same for so many slots: cohorts are halved while that shortens the makespan."""
        parts = by_depth(self.cohorts)
        return replace(self, cohorts=tuple(cohort for part in parts for cohort in split(part, slots)))

    def makespan(self, slots: int) -> float:
        """Multiply-accumulates until the last slot is idle, if each job goes to the slot that is free first."""
        end = _end(list(map(teacher_cost, self.teachers)), slots)
        for cohorts in by_depth(self.cohorts):
            end = _end([cohort.cost for cohort in cohorts], slots, end)
        return _end(list(map(measurement_cost, self.measurements)), slots, end)


def auxiliaries_of(spec: RunSpec) -> list[RunSpec]:
    """The runs whose students teach it, directly or through another, the first to be trained first."""
    before = spec.teacher.run if isinstance(spec.teacher, StudentOf) else None
    return [*auxiliaries_of(before), before] if before else []


def by_depth(cohorts: Iterable[Cohort]) -> list[list[Cohort]]:
    """Cohorts in an order in which each follows those that train its teacher: group after group."""
    groups: dict[int, list[Cohort]] = {}
    for cohort in cohorts:
        groups.setdefault(max(len(auxiliaries_of(run)) for run in cohort.runs), []).append(cohort)
    return [groups[depth] for depth in sorted(groups)]


def schedule(costs: Sequence[float], loads: Sequence[float]) -> list[float]:
    """Give the costliest jobs first to the slot that is free first; returns the loads of the slots."""
    heap = list(loads)
    heapq.heapify(heap)
    for cost in sorted(costs, reverse=True):
        heapq.heappush(heap, heapq.heappop(heap) + cost)
    return heap


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
    so unless ``retry_diverged``; what would be measured on it is left out. Cohorts are ``limited`` to the ``largest``.
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
        settled = record.done() or (not retry_diverged and _blocked_by_divergence(spec, store, diverged))
        done += settled
        if not settled:
            todo |= {each.id: each for each in (*_unfinished(auxiliaries_of(spec), store), spec)}
    if not retry_diverged:
        unmeasured = [spec for spec in unmeasured if not _measurement_blocked(spec, store, diverged)]
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


def _blocked_by_divergence(spec: RunSpec, store: Store, diverged: dict[str, bool]) -> bool:
    """Whether the run or what it needs diverged. ``diverged`` remembers the teachers that have been looked up."""
    teachers = [stage for need in spec.dependencies for stage in trained_stages(need)]
    if any(_blocked_by_divergence(each, store, diverged) for each in _unfinished(auxiliaries_of(spec), store)):
        return True
    for teacher in teachers:
        if teacher.id not in diverged:
            diverged[teacher.id] = _diverged(store.teacher(teacher.id))
    return any(diverged[teacher.id] for teacher in teachers) or _diverged(store.run(spec.id))


def _measurement_blocked(spec: ProbeSpec | SimilaritySpec, store: Store, diverged: dict[str, bool]) -> bool:
    """Whether one of the networks to be measured diverged, or the measurement itself."""
    if _diverged(store.measurement(spec.id)):
        return True
    runs = [need.source_run for need in spec.dependencies if need.source_run]
    stages = [stage for need in spec.dependencies for stage in trained_stages(need)]
    return any(_blocked_by_divergence(run, store, diverged) for run in runs if not store.run(run.id).done()) or any(
        _diverged(store.teacher(stage.id)) for stage in stages
    )


def _diverged(record: Record) -> bool:
    failure = record.failure()
    return failure is not None and failure.kind == "diverged" and not record.done()


def group(specs: Iterable[RunSpec]) -> list[Cohort]:
    """Put runs of one stream and one teacher together; runs without a teacher join the first cohort of their stream."""
    with_teacher: dict[str, list[RunSpec]] = {}
    without: list[RunSpec] = []
    for spec in specs:
        if spec.teacher is None:
            without.append(spec)
        else:
            with_teacher.setdefault(spec.cohort_key, []).append(spec)
    hosts: dict[str, list[RunSpec]] = {}
    for runs in with_teacher.values():
        hosts.setdefault(_stream(runs[0]), runs)
    alone: dict[str, list[RunSpec]] = {}
    for spec in without:
        target = hosts.get(_stream(spec))
        (alone.setdefault(_stream(spec), []) if target is None else target).append(spec)
    return [Cohort(tuple(runs)) for runs in (*with_teacher.values(), *alone.values())]


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
    """Halve the costliest cohorts as far as that brings the end nearer. The costliest come first.

    One halving may bring nothing while several do (four equal cohorts on six slots), so all are tried; the fewest that
    come within 2 % of the best are taken, for each costs another teacher pass.
    """
    best = sorted(cohorts, key=attrgetter("cost"), reverse=True)
    current, nearest = best.copy(), _end([cohort.cost for cohort in best], slots)
    total = sum(cohort.cost for cohort in best)
    for _ in range(2 * slots if slots > 1 else 0):
        if not current or len(current[0].runs) == 1:
            break
        total -= current[0].cost
        for half in reversed(_halves(current.pop(0))):
            insort_left(current, half, key=lambda cohort: -cohort.cost)
            total += half.cost
        if total / slots >= 0.98 * nearest:
            break
        end = current[0].cost if len(current) <= slots else _end([cohort.cost for cohort in current], slots)
        if end < 0.98 * nearest:
            best, nearest = current.copy(), end
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


def _end(costs: Sequence[float], slots: int, start: float = 0.0) -> float:
    """When the last slot is idle. No more slots are looked at than there are jobs."""
    return max(schedule(costs, [start] * max(1, min(slots, len(costs)))))


def _stream(spec: RunSpec) -> str:
    return f"{spec.stream_id}-{spec.recipe.precision}"


def changed_plugins(specs: Iterable[RunSpec], store: Store) -> list[str]:
    """One line for each plug-in with other code of which runs are finished. Only where some are to do are records read."""
    planned = {
        digest(_bare(spec.canonical())): spec for spec in specs if spec.plugins and not store.run(spec.id).done()
    }
    changed: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for record in store.records("runs") if planned else ():
        stored = record.spec()
        spec = planned.get(digest(_bare(stored)))
        if spec is None or not record.done():
            continue
        before = hashes_of_plugins(stored)
        for name, sha256 in spec.plugins.items():
            if name not in before:
                unknown[name] += 1
            elif before[name] != sha256:
                changed[name] += 1
    lines = [f"{name} has changed since {_runs(n)}: not reused." for name, n in changed.items()]
    return lines + [
        f"{name} may have changed since {_runs(n)}, for which its code was not recorded: not reused."
        for name, n in unknown.items()
    ]


def _runs(count: int) -> str:
    return f"{count} finished run{'s' if count > 1 else ''}"


def _bare(value: Any) -> Any:
    """A spec without the hashes of plug-ins' code."""
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items() if key != "source_sha256"}
    return [_bare(each) for each in value] if isinstance(value, list) else value


def hashes_of_plugins(value: Any) -> dict[str, str]:
    """The hashes of plug-ins' code in a stored spec, by the names of the terms."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    own = {str(value.get("name", value.get("term"))): str(value["source_sha256"])} if "source_sha256" in value else {}
    return {**own, **{name: each for inner in value.values() for name, each in hashes_of_plugins(inner).items()}}


def missing_files(plan: Plan, data: Path) -> list[str]:
    """One message for each data set and file of weights that ``data`` lacks: what is missing and how to get it."""
    used = [run.dataset for cohort in plan.cohorts for run in cohort.runs]
    used += [teacher.dataset for teacher in plan.teachers if teacher.dataset]
    used += [spec.dataset for spec in plan.measurements]
    names = sorted({spec.name for spec in used if not spec.stand_in})
    messages = [dataset(name).how_to_get(data) for name in names if dataset(name).missing(data)]
    folder = data / "weights"
    for teacher in plan.teachers:
        public = network(teacher.network).public
        starts_from_it = isinstance(teacher, Imported) and public and teacher.weights.source == public.source
        if public and starts_from_it and not (folder / public.file).is_file():
            messages.append(public.how_to_get(folder))
    return messages
