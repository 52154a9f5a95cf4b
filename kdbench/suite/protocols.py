"""Protocols: how one paper trains everything. Data, read from protocols/*.yaml; a suite may override single values."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from kdbench.catalogue.names import nearest, unknown
from kdbench.errors import BadInput, BadSuite, Problem
from kdbench.suite.methods import Terms
from kdbench.suite.resolve import late_milestones, merged, resolve
from kdbench.suite.settings import Protocol
from kdbench.suite.specs import Spec
from kdbench.suite.yaml_reader import Document, Path_, parse_yaml


class ResolvedProtocol(Spec):
    """A protocol with its methods parsed. ``name`` says what was changed; it equals ``base`` where nothing was."""

    name: str
    base: str
    settings: Protocol
    methods: dict[str, Terms]

    def as_published(self, method: str, terms: Terms) -> bool:
        """Whether a method with these terms is trained as the protocol's paper trains it."""
        if self.settings.paper is None or self.name != self.base:
            return False
        return bundled_protocol(self.base).methods.get(method) == terms


@cache
def protocol_names() -> list[str]:
    """The bundled protocols."""
    names = (entry.name for entry in files("kdbench.suite").joinpath("protocols").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and not name.startswith("."))


@cache
def bundled_document(name: str) -> Document:
    """A bundled protocol as a document. Raises BadInput for an unknown name."""
    if name not in protocol_names():
        raise BadInput(unknown("protocol", name, protocol_names(), "protocols"))
    text = files("kdbench.suite").joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"protocols/{name}.yaml")


@cache
def bundled_protocol(name: str) -> ResolvedProtocol:
    """A bundled protocol, validated."""
    document = bundled_document(name)
    settings, methods, problems = resolve(document.data, {}, document, ())
    problems = document.all_problems(problems)
    if problems or settings is None:
        raise BadSuite(problems)
    return ResolvedProtocol(name=name, base=name, settings=settings, methods=methods)


def stand_in(name: str) -> ResolvedProtocol:
    """What takes the place of an unknown protocol, so that the rest of a suite can be checked.

    It knows the methods of all protocols by name, but not their terms.
    """
    like = bundled_protocol(nearest(name, protocol_names()) or protocol_names()[0])
    methods: dict[str, Terms] = {method: () for each in protocol_names() for method in bundled_protocol(each).methods}
    return ResolvedProtocol(name=name, base=name, settings=like.settings, methods=methods)


def derived_protocol(
    changes: dict[str, Any], document: Document, path: Path_
) -> tuple[ResolvedProtocol, list[Problem]]:
    """A bundled protocol with some values changed: ``{base: crd, epochs: 20, teacher: {epochs: 40}}``.

    Returns the problems that were found, and the protocol with what is right of the changes.
    """
    changes = dict(changes)
    name, problems = changes.pop("base", None), []
    if not isinstance(name, str):
        message = f"'base' is missing: name the protocol that is changed, one of {', '.join(protocol_names())}"
        problems.append(document.problem(path, message))
        base = stand_in("")
    elif name not in protocol_names():
        message = unknown("protocol", name, protocol_names(), "protocols")
        problems.append(document.problem((*path, "base"), message))
        base = stand_in(name)
    else:
        base = bundled_protocol(name)
    original = base.settings.model_dump(mode="json", exclude={"methods"})
    whole = merged(original, changes)
    settings, methods, found = resolve(whole, original, document, path)
    found += late_milestones(changes, whole, document, path) if not found else []
    shown = _differences(original, {key: value for key, value in changes.items() if key not in _BESIDE})
    return ResolvedProtocol(
        name=f"{base.name}* ({', '.join(shown)})" if shown else base.name,
        base=base.name,
        settings=settings or base.settings,
        methods={**base.methods, **methods},
    ), problems + found


_BESIDE = ("title", "trials", "methods")
"""What can be changed while the protocol stays what it is: a method with other terms is another method."""


def _differences(original: dict[str, Any], changes: dict[str, Any]) -> list[str]:
    """What was changed, as ``epochs 20``, ``teacher.lr 0.1``."""
    found = []
    for key, value in changes.items():
        before = original.get(key)
        if isinstance(value, dict):
            found += [f"{key}.{text}" for text in _differences(before if isinstance(before, dict) else {}, value)]
        elif key not in original or before != value:
            found.append(f"{key} {json.dumps(value, ensure_ascii=False, default=str)}")
    return found
