"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.names import nearest, normalise
from kdbench.catalogue.networks import network
from kdbench.errors import BadInput


if TYPE_CHECKING:
    from kdbench.suite.suite import Run, Suite


Suites = Annotated[list[str], typer.Argument(metavar="SUITE…", help="Suite files, or names of bundled suites.")]
Results = Annotated[
    Path, typer.Option("--results", envvar="KDBENCH_RESULTS", help="Folder of the results.", show_default=True)
]
Data = Annotated[Path, typer.Option("--data", envvar="KDBENCH_DATA", help="Folder of the data sets.")]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trials of each run, instead of the suite's number.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="KEY=VALUE", help="Only runs with this method, student, teacher, dataset, strategy or trial."
    ),
]
Tiny = Annotated[
    bool,
    typer.Option(
        "--tiny",
        help="Try the whole grid in minutes: one trial and epoch, a few digits as images, random weights for published "
        "ones. Nothing is downloaded; the numbers mean nothing.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_KEYS = ("method", "student", "teacher", "dataset", "strategy", "trial")


def load(
    references: Sequence[str],
    results: Sequence[Path],
    trials: int | None = None,
    only: Sequence[str] | None = None,
    *,
    tiny: bool = False,
) -> list[Suite]:
    """The chosen part of suites. Files of weights that are gone count as what they were when the results were made."""
    from kdbench.store.store import Store
    from kdbench.store.suites import KnownWeights
    from kdbench.suite.load import load_suites

    known = KnownWeights([Store(folder) for folder in results])
    loaded = load_suites(references, trials, tiny=tiny, known=known.of)
    for message in known.messages:
        typer.echo(message, err=True)
    return select(loaded, only)


def select(suites: Sequence[Suite], only: Sequence[str] | None) -> list[Suite]:
    """Keep the runs that match every ``KEY=VALUE[,VALUE…]``. Raises BadInput for what matches nothing."""
    chosen = list(suites)
    for condition in only or ():
        key, _, values = condition.partition("=")
        if key not in _KEYS or not values:
            raise BadInput(f"--only {condition}: write KEY=VALUE with a KEY of {', '.join(_KEYS)}")
        wanted = {_spelling(key, value) for value in values.split(",")}
        there = {_spelling(key, _value(run, key)) for suite in suites for run in suite.runs}
        for value in sorted(wanted - there):
            near = nearest(value, there)
            hint = f"Did you mean '{near}'?" if near else f"There are {', '.join(sorted(there))}."
            raise BadInput(f"--only {condition}: no run has the {key} '{value}'. {hint}")
        chosen = [
            replace(
                suite,
                runs=tuple(run for run in suite.runs if _spelling(key, _value(run, key)) in wanted),
                measurements=tuple(m for m in suite.measurements if _spelling(key, _value(m.run, key)) in wanted),
                whole=suite.whole or suite,
            )
            for suite in chosen
        ]
    if only and not any(suite.runs for suite in chosen):
        raise BadInput(f"--only {' --only '.join(only)}: no run matches all of these")
    return [suite for suite in chosen if suite.runs]


def _spelling(key: str, value: str) -> str:
    """One spelling for all the names of a thing."""
    try:
        if key in ("student", "teacher"):
            return network(value).name
        if key == "dataset":
            return dataset(value).name
    except BadInput:
        pass
    return normalise(value)


def _value(run: Run, key: str) -> str:
    values = {
        "method": run.method,
        "student": run.spec.student,
        "teacher": run.teacher,
        "dataset": run.spec.dataset.name,
        "strategy": run.strategy,
        "trial": str(run.spec.trial),
    }
    return values[key]
