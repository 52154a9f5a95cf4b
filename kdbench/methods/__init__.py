"""The loss terms. One file each; what they are without importing them: kdbench.catalogue.terms."""

from __future__ import annotations

import importlib
from typing import Any

from kdbench.catalogue import terms
from kdbench.errors import BadInput
from kdbench.methods.term import Setting, Term


__all__ = ["Setting", "Term", "build_term"]


def build_term(name: str, setting: Setting, **hyper: Any) -> Term:
    """Build a loss term.

    name is a bundled term ("kd"), one that an installed package announces (entry points of the group "kdbench.terms"),
    or "package.module:Class". Raises BadInput for unknown names and hyper-parameters and for values of a wrong type.
    """
    info = terms.term(name)
    problems = [message for _, message in terms.check_hyperparameters(info, hyper)]
    if problems:
        raise BadInput(f"{name}: " + "; ".join(problems))
    kind = _load(info.target)
    built: Term = kind(setting, **hyper)
    return built


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
