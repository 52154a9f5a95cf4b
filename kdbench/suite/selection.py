"""Choosing runs of suites by conditions such as ``method=kd,at``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network
from kdbench.catalogue.text import listed, nearest, normalise, shorten
from kdbench.errors import BadInput


if TYPE_CHECKING:
    from kdbench.suite.suite import Run, Suite


VALUES: dict[str, Callable[[Run], str]] = {
    "method": lambda run: run.method,
    "student": lambda run: str(run.spec.student),
    "teacher": lambda run: run.teacher,
    "dataset": lambda run: run.spec.dataset.name,
    "strategy": lambda run: run.strategy,
    "trial": lambda run: str(run.spec.trial),
}
"""What a run has under each key of a condition."""


def select(suites: Sequence[Suite], only: Sequence[str] | None) -> list[Suite]:
    """Keep the runs that match every ``KEY=VALUE[,VALUE…]``. Raises BadInput for what matches nothing.

    A name may hold commas itself: of several ways to read a condition, the one with the longest names counts.
    """
    chosen = list(suites)
    for condition in only or ():
        typed, _, values = condition.partition("=")
        key = typed.strip().lower()
        if key not in VALUES or not values.strip(" ,"):
            near = nearest(key, VALUES)
            hint = f" Did you mean '{near}'?" if near and near != key else ""
            raise BadInput(
                f"--only {shorten(condition, 200)}: write KEY=VALUE with a KEY of {', '.join(VALUES)}.{hint}"
            )
        value = VALUES[key]
        there = sorted({value(run) for suite in suites for run in suite.runs} - {""})
        try:
            wanted = set().union(*_named(values, key, there))
        except KeyError as error:
            near = nearest(error.args[0], there)
            hint = f"Did you mean '{near}'?" if near else f"There are {listed(there)}."
            raise BadInput(
                f"--only {shorten(condition, 200)}: no run has the {key} '{shorten(error.args[0])}'. {hint}"
            ) from None
        chosen = [suite.part(run for run in suite.runs if value(run) in wanted) for suite in chosen]
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
            whole = re.match(r"[^,\[]*(\[[^\]]*\])?[^,]*", ",".join(parts).strip())
            if whole and (name := whole[0].strip()):
                raise KeyError(name)
            count = 1
        del parts[:count]


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
