"""Parts of suites for machines that share nothing: a function of the suites alone, whatever is finished where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from kdbench.planning.cohorts import Cohort, auxiliaries_of, group
from kdbench.planning.cost import Work, shared_work, student_work, teacher_work
from kdbench.planning.plan import all_stages
from kdbench.planning.speed import ASSUMED
from kdbench.suite.specs import RunSpec, lineage
from kdbench.suite.suite import Suite, run_specs


TOLERANCE = 0.1
"""A part may be larger or smaller by this share of it where that keeps a teacher's runs, or a cohort's, together."""


def shard(suites: Sequence[Suite], number: int, count: int) -> list[Suite]:
    """Part ``number`` (from 1) of ``count``, about equally long ones, that have each run once.

    All runs stand in a line, teacher by teacher and cohort by cohort, which is cut: so few teachers are trained in two
    parts. What is measured goes with its run. Where there are more parts than runs, the last ones are empty.
    """
    ids = _parts([*{spec.id: spec for spec in run_specs(suites)}.values()], count)[number - 1]
    parts = (suite.part(run for run in suite.runs if run.id in ids) for suite in suites)
    return [suite for suite in parts if suite.runs]


def _parts(specs: Sequence[RunSpec], count: int) -> list[set[str]]:
    """The ids of the runs of each part."""
    families: dict[str, list[Cohort]] = {}
    for cohort in group(specs):
        families.setdefault(_first_teacher(cohort), []).append(cohort)
    line: list[str] = []
    seconds: list[float] = []
    counted = {spec.id for spec in specs}
    ends: tuple[set[int], set[int]] = set(), set()
    for cohorts in families.values():
        runs = [run for cohort in cohorts for run in cohort.runs]
        before = sum((teacher_work(stage) for stage in all_stages(runs, ())), Work())
        for cohort in cohorts:
            shared = shared_work(cohort.runs) * (1 / len(cohort.runs))
            for run, work in zip(cohort.runs, cohort.students, strict=True):
                line.append(run.id)
                auxiliaries = {each.id: each for each in auxiliaries_of(run) if each.id not in counted}
                counted.update(auxiliaries)
                own = sum(map(student_work, auxiliaries.values()), work)
                seconds.append(ASSUMED["cpu"].seconds(own + shared + before * (1 / len(runs))))
            ends[1].add(len(line))
        ends[0].add(len(line))
    at = [0.0, *accumulate(seconds)]
    length, cuts = at[-1] / count, [0]
    for part in range(1, count):
        first = min(cuts[-1] + 1, len(line))
        left_for_others = max(first, len(line) - (count - part))
        cuts.append(_cut(at, ends, range(first, left_for_others + 1), length * part, TOLERANCE * length))
    return [set(line[start:end]) for start, end in pairwise([*cuts, len(line)])]


def _cut(at: Sequence[float], ends: Sequence[set[int]], allowed: range, wanted: float, tolerance: float) -> int:
    """Where to cut a line whose runs begin and end ``at`` so many seconds: after a teacher's runs, a cohort, or any run.

    ``allowed`` are the positions that leave a run for each part.
    """

    def distance(position: int) -> float:
        return abs(at[position] - wanted)

    for positions in ends:
        near = (position for position in allowed if position in positions and distance(position) <= tolerance)
        if (nearest := min(near, key=distance, default=None)) is not None:
            return nearest
    return min(allowed, key=distance)


def _first_teacher(cohort: Cohort) -> str:
    """The id of what a cohort's teacher, or its teacher's teacher, was made from; "" where there is none."""
    first = next((run for run in cohort.runs if run.teacher), None)
    if first is None:
        return ""
    first = [*auxiliaries_of(first), first][0]
    return lineage(first.teacher)[0].id if first.teacher else ""
