"""The loss terms. One file each; what they are without importing them: kdbench.catalogue.terms."""

from __future__ import annotations

import importlib
from typing import Any

from kdbench.catalogue import terms
from kdbench.catalogue.hyperparameters import (
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    PositiveNumber,
    Share,
    check_hyperparameters,
)
from kdbench.errors import BadInput
from kdbench.methods.part import Part
from kdbench.methods.term import Setting, Term


__all__ = [
    "NonNegative",
    "NonNegativeInt",
    "Part",
    "PositiveInt",
    "PositiveNumber",
    "Setting",
    "Share",
    "Term",
    "build_part",
    "build_term",
]


def build_term(name: str, setting: Setting, **hyper: Any) -> Term:
    """Build a loss term.

    name is a bundled term ("kd"), one that an installed package announces (entry points of the group "kdbench.terms"),
    or "package.module:Class". Raises BadInput for unknown names and hyper-parameters and for values out of their range.
    """
    info = terms.term(name)
    problems = [message for _, message in check_hyperparameters(info, hyper)]
    if problems:
        raise BadInput(f"{name}: " + "; ".join(problems))
    kind = _load(info.target)
    built: Term = kind(setting, **hyper)
    return built


def build_part(name: str, setting: Setting, **hyper: Any) -> Part:
    """Build the untrained part of a term, for the teacher in ``setting``.

    Hyper-parameters of the term that are not given hold their default. Raises BadInput where the term has no part.
    """
    info = terms.term(name)
    if info.part is None:
        raise BadInput(f"{name} trains nothing on the teacher first")
    options = {key: info.hyperparameters[key].default for key in info.part}
    return _load(info.target).build_part(setting, {**options, **hyper})


def _load(target: str) -> type[Term]:
    """Import the class of a "package.module:Class"."""
    module, class_name = target.split(":")
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except Exception as error:
        raise BadInput(f"cannot import the term '{target}': {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Term)):
        raise BadInput(f"'{target}' is no loss term: it must be a subclass of kdbench.methods.Term")
    return kind
