"""What the pool gives to workers: a teacher to train, a cohort, or a measurement."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kdbench.plan.plan import Plan
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, TeacherSpec


@dataclass(eq=False)
class Job:
    """A teacher to train, the runs of a cohort, or a measurement on finished networks.

    ``waited``: another process was at it before, ``waits_since`` then, and ``holders`` names whom the user has been told to
    wait for, by id; ``crashes``: how often a worker has died over it without getting further
    than ever before; ``reached``: how far each of its networks has come, in epochs and batches of the next that are behind
    it; ``spare``: the ids of those whose weights nothing will read.
    """

    teacher: TeacherSpec | None = None
    runs: tuple[RunSpec, ...] = ()
    measurement: ProbeSpec | SimilaritySpec | None = None
    not_before: float = 0.0
    waited: bool = False
    waits_since: float = 0.0
    holders: dict[str, str] = field(default_factory=dict)
    crashes: int = 0
    reached: dict[str, tuple[int, int]] = field(default_factory=dict)
    spare: frozenset[str] = frozenset()

    @property
    def ids(self) -> list[str]:
        """What it trains or measures."""
        single = self.teacher or self.measurement
        return [single.id] if single else [run.id for run in self.runs]

    @cached_property
    def needs(self) -> dict[str, TeacherSpec]:
        """All stages of teachers, and parts of them, that must be there before it can start, by the id of their record."""
        needs: Iterable[TeacherSpec]
        if self.teacher:
            needs = [self.teacher.before] if self.teacher.before else []
        else:
            needs = self.measurement.needs if self.measurement else [need for run in self.runs for need in run.needs]
        stages = [stage for need in needs for stage in need.chain]
        return {stage.made_by.id if stage.made_by else stage.id: stage for stage in stages}

    def facts(self) -> dict[str, Any]:
        """What a listener hears when it starts."""
        return {"teacher": self.teacher, "runs": self.runs, "measurement": self.measurement, "waited": self.waited}

    def message(self) -> dict[str, Any]:
        """What a worker is sent."""
        if self.teacher:
            return {"teacher": self.teacher.model_dump(mode="json"), "waited": self.waited}
        common = {"waited": self.waited, "spare": sorted(self.spare.intersection(self.ids))}
        if self.measurement:
            return {"measurement": self.measurement.model_dump(mode="json"), **common}
        return {"runs": [run.model_dump(mode="json") for run in self.runs], **common}

    def only(self, ids: Container[str], **changes: Any) -> Job:
        """The same job with these of its runs alone; a teacher or a measurement stays what it is."""
        return replace(self, runs=tuple(run for run in self.runs if run.id in ids), **changes)

    def halves(self, crashes: int) -> list[Job]:
        """Both halves of a cohort."""
        middle = len(self.runs) // 2
        parts = self.runs[:middle], self.runs[middle:]
        return [replace(self, runs=part, crashes=crashes) for part in parts]

    def note_place(self, id: str, epoch: int, batches: int = 0) -> None:
        """A worker that gets further than any before, or leaves a checkpoint that is further, is not in a crash loop."""
        if id not in self.reached or (epoch, batches) > self.reached[id]:
            self.reached[id] = epoch, batches
            self.crashes = 0


def jobs_of(plan: Plan) -> list[Job]:
    """A plan's teachers, then its cohorts, then its measurements.

    What learns from images that stand in for others is of no use: its weights are spare unless the plan itself needs them.
    """
    jobs = [
        *(Job(teacher=teacher) for teacher in plan.teachers),
        *(Job(runs=cohort.runs) for cohort in plan.cohorts),
        *(Job(measurement=spec) for spec in plan.measurements),
    ]
    needed = {need.made_by.id for job in jobs for need in job.needs.values() if need.made_by}
    spare = {run.id for cohort in plan.cohorts for run in cohort.runs if run.dataset.stand_in}
    spare |= {spec.id for spec in plan.measurements if spec.dataset.stand_in}
    return [replace(job, spare=frozenset(spare.intersection(job.ids) - needed)) for job in jobs]


def job_for(teacher: TeacherSpec) -> Job:
    """The job that makes a teacher: one of its own, or the run whose student it is."""
    return Job(runs=(teacher.made_by,)) if teacher.made_by else Job(teacher=teacher)
