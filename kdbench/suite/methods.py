"""Methods: named weighted sums of loss terms, as protocols and suites write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdbench.catalogue.terms import check_hyperparameters, term
from kdbench.errors import BadInput
from kdbench.suite.specs import TermUse
from kdbench.suite.yaml_reader import Path_


Report = Callable[[Path_, str], None]


def parse_terms(value: Any, report: Report) -> tuple[TermUse, ...]:
    """Read ``{ce: 0.1, kd: {weight: 0.9, temperature: 4}}``; what is wrong goes to ``report(path, message)``.

    Sorted by name, without terms of weight 0 and without hyper-parameters that equal the default, so that two ways of
    writing one method are the same method.
    """
    if not isinstance(value, dict) or not value:
        report((), "must be a sum of terms, such as {ce: 1, kd: 0.9}")
        return ()
    uses = [
        _parse_use(name, entry, lambda path, message, name=name: report((name, *path), message))
        for name, entry in value.items()
    ]
    if not any(use is None or use.weight for use in uses):
        report((), "every weight is 0")
    return tuple(sorted((use for use in uses if use and use.weight), key=lambda use: use.name))


def _parse_use(name: str, entry: Any, report: Report) -> TermUse | None:
    try:
        info = term(name)
    except BadInput as error:
        report((), str(error))
        return None
    options = dict(entry) if isinstance(entry, dict) else {"weight": entry}
    weight = options.pop("weight", 1.0)
    wrong = [(key, message) for key, message in check_hyperparameters(info, options)]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        wrong.append(("weight", f"the weight must be a number, not {weight!r}"))
    for key, message in wrong:
        report((key,), message)
    if wrong:
        return None
    defaults = {key: hyperparameter.default for key, hyperparameter in info.hyperparameters.items()}
    changed = {key: type(defaults[key])(value) for key, value in options.items() if value != defaults[key]}
    return TermUse(name=name, weight=weight, hyperparameters=changed, version=info.version)


def reads_teacher(terms: tuple[TermUse, ...]) -> bool:
    """Whether any of the terms needs a teacher."""
    return any(term(use.name).needs_teacher for use in terms)


def formula(terms: tuple[TermUse, ...]) -> str:
    """Write a method as ``1·ce + 0.9·kd(temperature=2)``."""
    parts = []
    for use in terms:
        options = ", ".join(f"{key}={value}" for key, value in use.hyperparameters.items())
        parts.append(f"{use.weight:g}·{use.name}" + (f"({options})" if options else ""))
    return " + ".join(parts)
