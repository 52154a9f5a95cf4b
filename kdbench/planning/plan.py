"""The plan: which teachers and cohorts to train, what is done already, what changed, and how long the rest takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from kdbench.files import free_space
from kdbench.planning.cohorts import Cohort, auxiliaries_of, by_depth, by_path, cap_size, group, split, tasks, widened
from kdbench.planning.cost import NOTHING, Work, cohort_work, measurement_work, shared_work, teacher_work
from kdbench.planning.output_cache import CachedOutputs, cached_outputs
from kdbench.planning.speed import ASSUMED, Speed
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.networks import info
from kdbench.suite.specs import (
    Imported,
    RunSpec,
    Stage,
    digest,
    lineage,
    trained_stages,
)


class Caching(StrEnum):
    """When a frozen teacher's outputs are cached instead of computed in each epoch, where that is possible at all."""

    auto = "auto"
    """where it saves a tenth of the time of its cohorts, a minute at least, and fills no more than half of the free disk"""
    always = "always"
    never = "never"


LEAST_SHARE, LEAST_SECONDS, MOST_OF_DISK = 0.1, 60.0, 0.5
"""The bounds of ``Caching.auto``."""


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
    def work(self) -> Work:
        """All that is left."""
        return sum((cohort.work for cohort in self.cohorts), self._others)

    @property
    def work_alone(self) -> Work:
        """The same if every run were trained by itself, with its own teacher passes."""
        return sum((cohort_work([run]) for cohort in self.cohorts for run in cohort.runs), self._others)

    @property
    def _others(self) -> Work:
        return sum(map(measurement_work, self.measurements), sum(map(teacher_work, self.teachers), NOTHING))

    @property
    def cached(self) -> list[CachedOutputs]:
        """The outputs of teachers that are cached."""
        return [*{cohort.cached.id: cohort.cached for cohort in self.cohorts if cohort.cached}.values()]

    def split_for(self, slots: int, speed: Speed = ASSUMED["cpu"], most: int = 1) -> Plan:
        """The same for so many slots: cohorts are halved while that shortens the makespan.

        Up to ``most`` devices train a job together where others would wait for it.

        Teachers and cohorts come in the order of the longest path that begins with them: first what most waits for.
        """
        cohorts = split(self.cohorts, slots, speed, self.teachers, most)
        jobs: list[Stage | Cohort] = [*self.teachers, *cohorts]
        order = [jobs[number] for number in by_path(widened(tasks(self.teachers, cohorts, speed, most), slots))]
        return replace(
            self,
            teachers=tuple(job for job in order if not isinstance(job, Cohort)),
            cohorts=tuple(job for job in order if isinstance(job, Cohort)),
        )


def make_plan(
    specs: Iterable[RunSpec],
    store: Store,
    *,
    retry_diverged: bool = False,
    teachers: Iterable[Stage] = (),
    measurements: Iterable[ProbeSpec | SimilaritySpec] = (),
    largest: int | None = None,
    caching: Caching = Caching.auto,
) -> Plan:
    """Plan the runs that have no result yet, and the ``teachers`` that are wanted whether or not such a run needs them.

    A teacher that was begun, or quarantined as damaged, is made also where its runs are done: their table shows it.
    Runs whose students teach others, or are measured, are added where they are needed. What diverged, run or teacher, stays
    so unless ``retry_diverged``; what would be measured on it is left out. No cohort has more than ``largest`` runs
    (``cap_size``). ``caching`` says when teachers' outputs take the place of their passes.
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
    grouped = by_depth(with_cached_outputs(group(todo.values()), store, caching))
    cohorts = [cohort for part in grouped for cohort in split(cap_size(part, largest or len(todo)), 1, ASSUMED["cpu"])]
    ready = len(needed) - len(missing)
    return Plan(tuple(missing), tuple(cohorts), done, ready, tuple(unmeasured), len(distinct) - len(unmeasured))


def with_cached_outputs(cohorts: Sequence[Cohort], store: Store, caching: Caching) -> list[Cohort]:
    """The same cohorts; where it pays they read their teacher's cached outputs, which all its cohorts make together.

    Where the disk is too small for all, those come first that save most for their size.
    """
    if caching == "never":
        return [*cohorts]
    possible = [cached_outputs(cohort.runs) for cohort in cohorts]
    readers: dict[str, list[Cohort]] = defaultdict(list)
    for outputs, cohort in zip(possible, cohorts, strict=True):
        if outputs:
            readers[outputs.id].append(cohort)
    seconds, candidates = ASSUMED["cpu"].seconds, []
    for outputs in {outputs.id: outputs for outputs in possible if outputs}.values():
        left = outputs.as_in(store)
        passes = sum(seconds(shared_work(cohort.runs)) for cohort in readers[outputs.id])
        before = sum(seconds(cohort.work) for cohort in readers[outputs.id])
        saved = passes - seconds(left.making)
        candidates.append((saved, replace(left.share(1 / len(readers[outputs.id])), saved=saved / before)))
    free = MOST_OF_DISK * free_space(store.root)
    chosen: dict[str, CachedOutputs] = {}
    for saved, outputs in sorted(candidates, key=lambda candidate: -candidate[0] / candidate[1].bytes):
        needed = outputs.missing * outputs.bytes
        pays = saved >= LEAST_SECONDS and outputs.saved >= LEAST_SHARE and needed <= free
        if pays or caching == "always":
            free -= needed
            chosen[outputs.id] = outputs
    return [
        replace(cohort, cached=chosen.get(outputs.id) if outputs else None)
        for outputs, cohort in zip(possible, cohorts, strict=True)
    ]


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
