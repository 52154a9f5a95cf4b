"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.names import listed, nearest, normalise, shorten
from kdbench.catalogue.networks import network
from kdbench.cli.streams import say
from kdbench.errors import BadInput


if TYPE_CHECKING:
    from kdbench.suite.suite import Run, Suite


def path(text: str) -> Path:
    """A path as it was typed, where `~` is the home folder, also after `=` and in environment variables."""
    if not str(text):
        raise typer.BadParameter("is empty: give a path")
    return Path(os.path.expanduser(text))


def results_folder(text: str) -> Path:
    """The path of a folder that is there, or of one that can be made."""
    found = path(text)
    try:
        os.stat(found)
    except FileNotFoundError:
        usable = not found.is_symlink()
    except OSError as error:
        raise BadInput(f"{shorten(str(found), 200)}: cannot be a folder of results: {error.strerror}") from None
    else:
        usable = found.is_dir()
    if not usable:
        raise BadInput(f"{found}: is no folder of results. Name a folder, or a path where one can be made")
    return found


Suites = Annotated[
    list[str], typer.Argument(metavar="SUITE…", help="Suite files, `-` for standard input, or names of bundled suites.")
]
Results = Annotated[
    Path,
    typer.Option(
        "--results",
        envvar="KDBENCH_RESULTS",
        parser=results_folder,
        metavar="PATH",
        help="Folder of the results.",
        show_default=True,
    ),
]
Data = Annotated[
    Path,
    typer.Option("--data", envvar="KDBENCH_DATA", parser=path, metavar="PATH", help="Folder of the data sets."),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trials of each run, instead of the suite's number.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="KEY=VALUE",
        help="Only runs with this method, student, teacher, dataset, strategy or trial; several values with commas.",
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
    """The chosen part of suites. Weights and modules that are gone count as what they were when the results were made."""
    from kdbench.store.store import Store
    from kdbench.store.suites import KnownFiles
    from kdbench.suite.load import load_suites

    known = KnownFiles([Store(folder) for folder in results])
    loaded = load_suites(references, trials, tiny=tiny, known=known.tell)
    for message in known.messages:
        say(message)
    return select(loaded, only)


def select(suites: Sequence[Suite], only: Sequence[str] | None) -> list[Suite]:
    """Keep the runs that match every ``KEY=VALUE[,VALUE…]``. Raises BadInput for what matches nothing.

    A name may hold commas itself: of several ways to read a condition, the one with the longest names counts.
    """
    chosen = list(suites)
    for condition in only or ():
        typed, _, values = condition.partition("=")
        key = typed.strip().lower()
        if key not in _KEYS or not values.strip(" ,"):
            near = nearest(key, _KEYS)
            hint = f" Did you mean '{near}'?" if near and near != key else ""
            raise BadInput(f"--only {shorten(condition, 200)}: write KEY=VALUE with a KEY of {', '.join(_KEYS)}.{hint}")
        there = sorted({_value(run, key) for suite in suites for run in suite.runs} - {""})
        try:
            wanted = set().union(*_named(values, key, there))
        except KeyError as error:
            raise BadInput(
                f"--only {shorten(condition, 200)}: no run has the {key} {_unknown(error.args[0], there)}"
            ) from None
        chosen = [
            replace(
                suite,
                runs=tuple(run for run in suite.runs if _value(run, key) in wanted),
                measurements=tuple(m for m in suite.measurements if _value(m.run, key) in wanted),
                whole=suite.whole or suite,
            )
            for suite in chosen
        ]
    if only and not any(suite.runs for suite in chosen):
        raise BadInput(f"--only {' --only '.join(only)}: no run matches all of these")
    return [suite for suite in chosen if suite.runs]


def _named(values: str, key: str, there: Sequence[str]) -> Iterator[set[str]]:
    """The values that are meant, of those ``there``. Raises KeyError for another."""
    spelt: dict[str, set[str]] = {}
    for name in there:
        spelt.setdefault(_spelling(key, name), set()).add(name)
    parts, most = values.split(","), 1 + max((name.count(",") for name in there), default=0)
    while parts:
        for count in range(min(most, len(parts)), 0, -1):
            name = ",".join(parts[:count]).strip()
            if name and (found := {name}.intersection(there) or spelt.get(_spelling(key, name))):
                yield found
                break
        else:
            count = 1
            if name:
                raise KeyError(name)
        del parts[:count]


def _unknown(value: str, there: Sequence[str]) -> str:
    near = nearest(value, there)
    return f"'{shorten(value)}'. " + (f"Did you mean '{near}'?" if near else f"There are {listed(there)}.")


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
