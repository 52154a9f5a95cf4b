"""The loss terms, one file each, and what several share: ``functional``, ``crosslayer``, ``pretext``.

What they are without importing them: ``kdbench.catalogue.terms``. A method, the sum of some: ``kdbench.suite.methods``.
"""

from __future__ import annotations

from importlib import import_module
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
from kdbench.catalogue.plugins import import_plugin
from kdbench.catalogue.terms import TermInfo
from kdbench.errors import BadInput
from kdbench.methods.term import Part, Term, TermContext


__all__ = [
    "NonNegative",
    "NonNegativeInt",
    "Part",
    "PositiveInt",
    "PositiveNumber",
    "Share",
    "Term",
    "TermContext",
    "build_part",
    "build_term",
]

Setting = TermContext
"""The name in kdbench 0.1, for losses that were written for it."""


def build_term(name: str, context: TermContext, source_sha256: str | None = None, /, **hyper: Any) -> Term:
    """Build a loss term.

    name is a bundled term ("kd"), one that an installed package announces (entry points of the group "kdbench.terms"),
    or "package.module:Class". Raises BadInput for unknown names and hyper-parameters, for values out of their
    range, and where the term's code is not that of ``source_sha256``.
    """
    info = terms.term(name, source_sha256)
    problems = [message for _, message in check_hyperparameters(info, hyper)]
    if problems:
        raise BadInput(f"{name}: " + "; ".join(problems))
    kind = _load(info)
    built: Term = kind(context, **hyper)
    return built


def build_part(name: str, context: TermContext, source_sha256: str | None = None, /, **hyper: Any) -> Part:
    """Build the untrained part of a term, for the teacher in ``context``.

    Hyper-parameters of the term that are not given hold their default. Raises BadInput where the term has no part, or its
    code is not that of ``source_sha256``.
    """
    info = terms.term(name, source_sha256)
    if info.part is None:
        raise BadInput(f"{name} trains nothing on the teacher first")
    options = {key: info.hyperparameters[key].default for key in info.part}
    return _load(info).build_part(context, {**options, **hyper})


def _load(info: TermInfo) -> type[Term]:
    """Import the class of a term."""
    module, class_name = info.target.split(":")
    try:
        kind = getattr(import_plugin(info.source, module) if info.source else import_module(module), class_name)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"cannot import the term '{info.target}': {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Term)):
        raise BadInput(f"'{info.target}' is no loss term: it must be a subclass of kdbench.methods.Term")
    return kind
