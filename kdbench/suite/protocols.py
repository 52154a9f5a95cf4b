"""Protocols: how one paper trains everything. Data, read from protocols/*.yaml; a suite may override single values."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field, StrictStr, ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.names import unknown
from kdbench.catalogue.networks import networks
from kdbench.errors import BadInput, BadSuite
from kdbench.suite.fields import problems_of
from kdbench.suite.methods import parse_terms
from kdbench.suite.specs import HeadSpec, PositiveInt, Recipe, Spec, StrictFloat, TermUse
from kdbench.suite.yaml_reader import Document, Path_, parse_yaml


class Protocol(Recipe):
    """The recipe of the students, and how it differs for teachers, heads, networks and data sets.

    ``teacher`` and ``head`` override single values of the recipe for the teacher and for the new layers on a foundation
    backbone; ``head_simultaneous`` overrides ``head`` where those layers learn beside the student. ``lr_for`` names the
    networks that train at another rate; ``datasets`` overrides values for one data set. ``score`` is the epoch whose
    accuracy the paper reports.
    """

    title: StrictStr
    paper: StrictStr | None = None
    score: Literal["last", "best"]
    trials: PositiveInt = 1
    lr_for: dict[str, StrictFloat] = {}
    teacher: dict[str, Any] = {}
    teacher_checkpoint: Literal["last", "best"] = "last"
    head: dict[str, Any] = {}
    head_simultaneous: dict[str, Any] = {}
    datasets: dict[str, dict[str, Any]] = {}
    methods: dict[str, Any] = Field(default_factory=dict)

    def recipe(self, network: str, dataset: str) -> Recipe:
        """How the protocol trains a student."""
        return self._recipe(network, dataset, {})

    def teacher_recipe(self, network: str, dataset: str) -> Recipe:
        """How the protocol trains a teacher from scratch. It keeps its own classifier."""
        return self._recipe(network, dataset, {"node_embedding": None, **self.teacher})

    def head_spec(self, dataset: str, *, simultaneous: bool) -> HeadSpec | None:
        """The new layers on a foundation backbone, or None where the protocol has none."""
        if self.node_embedding is None:
            return None
        changes = {**self.head, **(self.head_simultaneous if simultaneous else {}), "node_embedding": None}
        return HeadSpec(width=self.node_embedding, recipe=self._recipe("", dataset, changes))

    def _recipe(self, network: str, dataset: str, changes: dict[str, Any]) -> Recipe:
        own = self.model_dump(include=set(Recipe.model_fields))
        if network in self.lr_for:
            own["lr"] = self.lr_for[network]
        return Recipe(**{**own, **self.datasets.get(dataset, {}), **changes})


class ResolvedProtocol(Spec):
    """A protocol with its methods parsed, and the name under which it is shown."""

    name: str
    settings: Protocol
    methods: dict[str, tuple[TermUse, ...]]


def protocol_names() -> list[str]:
    """The bundled protocols."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("kdbench.suite").joinpath("protocols").iterdir())


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
    return resolve(name, document.data, document, ())


def derived_protocol(changes: dict[str, Any], document: Document, path: Path_) -> ResolvedProtocol:
    """A bundled protocol with some values changed: ``{base: crd, epochs: 20, teacher: {epochs: 40}}``."""
    base = changes.get("base")
    if not isinstance(base, str):
        raise BadSuite([document.problem(path, "'base' is missing: name the protocol that is changed")])
    try:
        raw = dict(bundled_document(base).data)
    except BadInput as error:
        raise BadSuite([document.problem((*path, "base"), str(error))]) from None
    for key, value in changes.items():
        if key != "base":
            both = isinstance(value, dict) and isinstance(raw.get(key), dict)
            raw[key] = {**raw[key], **value} if both else value
    return resolve(f"{base}*", raw, document, path)


def resolve(name: str, raw: dict[str, Any], document: Document, path: Path_) -> ResolvedProtocol:
    """Validate a protocol's raw values. Raises BadSuite with every problem that was found."""
    problems = list(document.problems)
    settings = None
    try:
        settings = Protocol.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, document, path, Protocol.model_fields)
    sections = {key: raw.get(key) or {} for key in ("lr_for", "datasets", "teacher", "head", "head_simultaneous")}
    for section, known, kind in (("lr_for", networks(), "model"), ("datasets", datasets(), "dataset")):
        for key in sections[section]:
            if key not in known:
                problems.append(document.problem((*path, section, key), unknown(kind, key, known, f"{kind}s")))
    if settings is not None:
        problems += _section_problems(settings, sections, document, path)
    methods: dict[str, tuple[TermUse, ...]] = {}
    for method, value in (raw.get("methods") or {}).items():
        where = (*path, "methods", method)
        methods[method] = parse_terms(
            value, lambda p, m, where=where: problems.append(document.problem((*where, *p), m))
        )
    if problems or settings is None:
        raise BadSuite(problems)
    return ResolvedProtocol(name=name, settings=settings, methods=methods)


def _section_problems(settings: Protocol, sections: dict[str, Any], document: Document, path: Path_) -> list[Any]:
    whole = settings.model_dump(include=set(Recipe.model_fields))
    parts = {(key,): sections[key] for key in ("teacher", "head", "head_simultaneous")}
    parts |= {("datasets", key): value for key, value in sections["datasets"].items()}
    problems = []
    for where, changes in parts.items():
        try:
            Recipe.model_validate({**whole, **changes})
        except ValidationError as error:
            problems += problems_of(error, document, (*path, *where), Recipe.model_fields)
    return problems
