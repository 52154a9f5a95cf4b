"""The files of data sets and published weights that a plan needs."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network
from kdbench.planning.plan import Plan
from kdbench.suite.specs import Imported


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
