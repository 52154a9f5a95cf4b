"""Protocols: recipe, score rule, trials and methods, as YAML files define them and suites change them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property, partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import StrictStr, TypeAdapter, ValidationError

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import networks
from kdbench.catalogue.text import nearest, unknown
from kdbench.errors import BadInput, BadSuite, Problem
from kdbench.suite.components import LearningRate, PositiveInt, Precision, TeacherInference, late_milestone
from kdbench.suite.data_specs import ImagesSpec
from kdbench.suite.methods import ReportProblem, Terms, parse_terms
from kdbench.suite.plain_errors import problems_of, shorten
from kdbench.suite.schema import DatasetName, NetworkName, PartName
from kdbench.suite.specs import DatasetSpec, HeadSpec, Preprocessing, Pretraining, Recipe, SimCLR
from kdbench.suite.yaml_reader import Document, YamlPath, parse_yaml


NOTHING: Mapping[str, Any] = MappingProxyType({})
_ALONE = {"node_embedding": None, "evaluate_every": 1, "batch_norm_parts": 1}
"""What a recipe of students says that does not concern what is trained on a teacher before them."""
Changes = dict[str, Any]
"""Values of a recipe that take the place of others."""


class Protocol(Recipe):
    """The recipe of the students, and how it differs for teachers, heads, networks and data sets.

    ``teacher`` and ``head`` override single values of the recipe for the teacher and for the new layers on a foundation
    backbone; ``head_simultaneous`` overrides ``head`` where those layers learn beside the student. ``pretraining``
    overrides the recipe where a teacher is first trained without labels, and ``simclr`` says how; ``fine_tune`` overrides
    ``teacher`` where it starts from such or from published weights. Under ``teacher_view: own`` the teacher sees its own
    augmented view of each image instead of the students'; ``teacher_precision`` is that of its passes beside the students,
    by default theirs, and ``teacher_inference`` how these are made cheaper. ``parts`` overrides single values of the
    student's recipe for what a term, by name, trains on the finished teacher first; its ``lr_for`` names the students, by
    patterns such as `resnet*`, for which that happens at another rate.
    ``lr_for`` names the networks that train at another rate;
    ``datasets`` overrides values for one data set. ``score`` is the epoch whose accuracy the paper reports.

    ``methods`` is what the file says of them; what follows is set by the loader: ``terms`` are the methods parsed, those of
    the ``base`` included, and ``name`` says what was changed; it equals ``base`` where nothing was.
    """

    title: StrictStr
    paper: StrictStr | None = None
    score: Literal["last", "best"]
    trials: PositiveInt = 1
    lr_for: dict[NetworkName, LearningRate] = {}
    teacher: dict[str, Any] = {}
    teacher_checkpoint: Literal["last", "best"] = "last"
    head: dict[str, Any] = {}
    head_simultaneous: dict[str, Any] = {}
    pretraining: dict[str, Any] = {}
    simclr: SimCLR = SimCLR()
    fine_tune: dict[str, Any] = {}
    teacher_view: Literal["shared", "own"] = "shared"
    teacher_precision: Precision | None = None
    teacher_inference: TeacherInference | None = None
    parts: dict[PartName, dict[str, Any]] = {}
    datasets: dict[DatasetName, dict[str, Any]] = {}
    methods: dict[str, Any] = {}
    name: str = ""
    base: str = ""
    terms: dict[str, Terms] = {}

    def written(self) -> dict[str, Any]:
        """The values as a file says them, without the defaults."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=SET_BY_LOADER)

    def as_published(self, method: str, terms: Terms) -> bool:
        """Whether a method with these terms is trained as the protocol's paper trains it."""
        if self.paper is None or self.name != self.base:
            return False
        return bundled_protocol(self.base).terms.get(method) == terms

    def most_padding(self, data: DatasetSpec) -> int:
        """The most by which any network's images of a data set are padded."""
        heads = (self.head_spec(data, simultaneous=simultaneous) for simultaneous in (False, True))
        teachers = (self.teacher_recipe("", data, fine_tune=fine_tune) for fine_tune in (False, True))
        recipes = [self.recipe("", data), *teachers, *(head.recipe for head in heads if head)]
        return max(recipe.crop_padding for recipe in recipes)

    def teacher_recipe(
        self, network: str, data: DatasetSpec | None, view: Changes | None = None, *, fine_tune: bool = False
    ) -> Recipe:
        """The recipe of a teacher with its own classifier, from scratch or, to ``fine_tune``, from pre-trained weights.

        How often it is tested does not change it, unless its best epoch is the one that is kept. ``view`` overrides how it
        sees the images.
        """
        tested = {"evaluate_every": 1} if self.teacher_checkpoint == "last" else {}
        tuned = self.fine_tune if fine_tune else {}
        changes = {"node_embedding": None, **tested, **self.teacher, **tuned, **(view or {})}
        return self.recipe(network, data, changes)

    def pretraining_spec(self, network: str, data: DatasetSpec | None) -> Pretraining:
        """The recipe of self-supervised pre-training."""
        changes = {**_ALONE, **self.pretraining, "crop_padding": 0}
        return Pretraining(recipe=self.recipe(network, data, changes), **self.simclr.model_dump())

    def head_spec(
        self, data: DatasetSpec | None, *, simultaneous: bool, view: Changes | None = None
    ) -> HeadSpec | None:
        """The new layers on a frozen backbone; None if the protocol defines none."""
        if self.node_embedding is None:
            return None
        beside = self.head_simultaneous if simultaneous else {}
        changes = {"batch_norm_parts": 1, **self.head, **beside, "node_embedding": None, **(view or {})}
        return HeadSpec(width=self.node_embedding, recipe=self.recipe("", data, changes))

    def part_recipe(
        self, term: str, student: str, data: DatasetSpec | None, view: Preprocessing | None = None
    ) -> Recipe:
        """The recipe of a term's adapter on a finished teacher, with the teacher's preprocessing."""
        changes = dict(self.parts.get(term, {}))
        rates = changes.pop("lr_for", {})
        rate = next(({"lr": lr} for pattern, lr in rates.items() if fnmatchcase(student, pattern)), {})
        seen = view.model_dump() if view else {}
        return self.recipe(student, data, {**_ALONE, **changes, **rate, **seen})

    def recipe(self, network: str, data: DatasetSpec | None, changes: Changes | None = None) -> Recipe:
        """The recipe of a student; of another network with the ``changes`` that make it that one's.

        Without ``data``, that of every data set for which nothing else is said.
        """
        name, in_memory = (data.name, not data.facts.streamed) if data else ("", False)
        key = (network, name, in_memory, repr(changes))
        if key not in self._recipes:
            own = self.model_dump(include=set(Recipe.model_fields))
            if network in self.lr_for:
                own["lr"] = self.lr_for[network]
            values = {**own, **self.datasets.get(name, {}), **(changes or {})}
            if in_memory:
                values |= {"crop_area": None, "crop_ratio": None}  # they say nothing of such images
            self._recipes[key] = Recipe(**values)
        return self._recipes[key]

    @cached_property
    def _recipes(self) -> dict[tuple[str, str, bool, str], Recipe]:
        """Cache: a grid requests the same recipes many times."""
        return {}


SET_BY_LOADER = {"name", "base", "terms"}
"""The fields of a protocol that are no keys of its file."""

Schema = TypeVar("Schema", bound=Recipe)
_RATE: TypeAdapter[float] = TypeAdapter(LearningRate)
SECTIONS = ("teacher", "head", "head_simultaneous", "pretraining", "fine_tune")
"""The parts of a protocol that override single values of its recipe."""
_WITHOUT_BATCH_NORM = ("head", "head_simultaneous", "parts")
"""The parts of a protocol that train layers on a frozen network."""


def merged(original: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The original's values with single ones replaced, within its sections, parts and data sets, too."""
    raw = {**original, **changes}
    for key in ("lr_for", "simclr", *SECTIONS):
        raw[key] = _merge(original[key], raw[key])
    for key, canonical in (("parts", str), ("datasets", _canonical)):
        if isinstance(raw[key], dict):
            old = original[key]
            raw[key] = old | {name: _merge(old.get(canonical(name)), values) for name, values in raw[key].items()}
    return raw


def _merge(original: Any, changes: Any) -> Any:
    return {**original, **changes} if isinstance(original, dict) and isinstance(changes, dict) else changes


def _canonical(name: str) -> str:
    try:
        return dataset(name).name
    except BadInput:
        return name


def resolve(
    raw: Any, fallback: dict[str, Any], document: Document, path: YamlPath, own: Mapping[str, Any] = NOTHING
) -> tuple[Protocol, list[Problem]]:
    """Validate a protocol's raw values. A wrong one is replaced by that in ``fallback``.

    own: the suite's own ``networks`` and ``datasets``, which the protocol may name

    Returns the protocol and the problems. Raises BadSuite where there is no fallback for a value.
    """
    problems: list[Problem] = []

    def report_below(*place: str) -> ReportProblem:
        return lambda inner, message: problems.append(document.problem((*path, *place, *inner), message))

    protocol = _check(Protocol, raw, fallback, document, path, problems, own)
    whole = protocol.model_dump(include=set(Recipe.model_fields))
    for where, values in _sections(raw).items():
        if where[0] in _WITHOUT_BATCH_NORM and "batch_norm_parts" in values:
            text = "divides a batch where a network's batch norms train, and here none does: leave it out"
            report_below(*map(str, where))(("batch_norm_parts",), f"'batch_norm_parts' {text}")
            values = {key: value for key, value in values.items() if key != "batch_norm_parts"}
        _check(Recipe, {**whole, **values}, whole, document, (*path, *where), problems)
    names = [*networks(), *(own["networks"].own if own else ())]
    _report_wrong_rates(raw.get("parts"), names, report_below("parts"))
    if not problems:
        _report_clashes(protocol, own.get("datasets", {}), report_below())
    methods = raw["methods"] if isinstance(raw.get("methods"), dict) else {}
    terms = {name: parse_terms(value, report_below("methods", name)) for name, value in methods.items()}
    return protocol.model_copy(update={"terms": terms}), problems


def _check(
    schema: type[Schema],
    values: dict[str, Any],
    fallback: dict[str, Any],
    document: Document,
    path: YamlPath,
    problems: list[Problem],
    own: Mapping[str, Any] = NOTHING,
) -> Schema:
    """Validate values; those that are wrong are reported, and the fallback's are taken."""
    keys = {"": schema.model_fields.keys() - SET_BY_LOADER}
    for key in SET_BY_LOADER & values.keys():
        problems.append(document.problem((*path, key), f"unknown key. Known keys: {', '.join(sorted(keys['']))}."))
    values = {key: value for key, value in values.items() if key not in SET_BY_LOADER}
    try:
        return schema.model_validate(values, context=own)
    except ValidationError as error:
        problems += problems_of(error, document, path, keys)
        wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
    rest = {key: value for key, value in values.items() if key not in wrong}
    restored = {key: fallback[key] for key in wrong if key in fallback}
    try:
        return schema.model_validate({**rest, **restored}, context=own)
    except ValidationError as error:
        if wrong:  # what fields say together was not looked at before
            problems += [p for p in problems_of(error, document, path, keys) if not error.errors()[0]["loc"]]
    if not fallback:
        raise BadSuite(document.all_problems(problems))
    return schema.model_validate(fallback)


def _sections(raw: dict[str, Any]) -> dict[YamlPath, dict[str, Any]]:
    """The parts of a protocol that override single values of its recipe, by their place."""
    sections: dict[YamlPath, Any] = {(key,): raw.get(key) for key in SECTIONS}
    for key in ("datasets", "parts"):
        if isinstance(raw.get(key), dict):
            sections |= {(key, name): values for name, values in raw[key].items()}
    return {
        where: {key: value for key, value in values.items() if where[0] != "parts" or key != "lr_for"}
        for where, values in sections.items()
        if isinstance(values, dict)
    }


def late_milestones(said: dict[str, Any], whole: dict[str, Any], document: Document, path: YamlPath) -> list[Problem]:
    """Report milestones in ``said`` beyond the last epoch, which a section may inherit from the ``whole``."""
    problems = []
    sections = _sections(whole)
    for where, section in {(): said, **_sections(said)}.items():
        above: Any = whole.get(_ABOVE.get(str(where[0]), ""), {}) if where else {}
        epochs = sections.get(where, whole).get("epochs", above.get("epochs", whole["epochs"]))
        if message := late_milestone(section.get("milestones"), epochs):
            problems.append(document.problem((*path, *where, "milestones"), message))
    return problems


_ABOVE = {"fine_tune": "teacher", "head_simultaneous": "head"}
"""The sections that inherit from another section instead of from the recipe."""


def _report_wrong_rates(parts: Any, names: Sequence[str], report: ReportProblem) -> None:
    """Report wrong learning rates of adapters by student."""
    for name, values in parts.items() if isinstance(parts, dict) else ():
        rates = values.get("lr_for", {}) if isinstance(values, dict) else {}
        if not isinstance(rates, dict):
            report((name, "lr_for"), "must be a mapping of students to rates, such as {resnet*: 0.01}")
            continue
        for pattern, rate in rates.items():
            where = (name, "lr_for", pattern)
            try:
                _RATE.validate_python(rate)
            except ValidationError:
                report(where, f"must be a number above 0, up to 100, not {shorten(rate)}")
            if not any(fnmatchcase(network, str(pattern)) for network in names):
                report(where, f"no network is called '{pattern}'  (kdbench list models)")


def _report_clashes(protocol: Protocol, own: Mapping[str, ImagesSpec], report: ReportProblem) -> None:
    """Report overrides that are right one by one but not together, such as Nesterov here and no momentum there."""
    sections: list[tuple[str, Callable[[DatasetSpec | None], object]]] = [
        ("teacher", partial(protocol.teacher_recipe, "")),
        ("head", partial(protocol.head_spec, simultaneous=False)),
        ("head_simultaneous", partial(protocol.head_spec, simultaneous=True)),
        ("pretraining", partial(protocol.pretraining_spec, "")),
        ("fine_tune", partial(protocol.teacher_recipe, "", fine_tune=True)),
        *(("parts", partial(protocol.part_recipe, term, "")) for term in protocol.parts),
    ]
    for name in ("", *protocol.datasets):
        data = DatasetSpec(name=name, images=own.get(name)) if name else None
        for section, build in sections:
            if section in ("pretraining", "fine_tune") and not getattr(protocol, section):
                continue  # what it inherits is reported where it stands
            try:
                build(data)
            except ValidationError as error:
                where = f" on {name}" if name else ""
                report((section,), error.errors()[0]["msg"].removeprefix("Value error, ") + where)


@cache
def protocol_names() -> list[str]:
    """The bundled protocols."""
    names = (entry.name for entry in files("kdbench.suite").joinpath("protocols").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and not name.startswith("."))


@cache
def bundled_protocol(name: str) -> Protocol:
    """A bundled protocol, validated. Raises BadInput for an unknown name."""
    if name not in protocol_names():
        raise BadInput(unknown("protocol", name, protocol_names(), "protocols"))
    text = files("kdbench.suite").joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8")
    document = parse_yaml(text, f"protocols/{name}.yaml")
    protocol, problems = resolve(document.data, {}, document, ())
    if problems := document.all_problems(problems):
        raise BadSuite(problems)
    return protocol.model_copy(update={"name": name, "base": name})


def fallback_protocol(name: str) -> Protocol:
    """The bundled protocol with the nearest name, to check the rest of a suite whose own protocol is unknown.

    It knows the methods of all protocols by name, but not their terms.
    """
    like = bundled_protocol(nearest(name, protocol_names()) or protocol_names()[0])
    terms: dict[str, Terms] = {method: () for each in protocol_names() for method in bundled_protocol(each).terms}
    return like.model_copy(update={"name": name, "base": name, "terms": terms})


def derived_protocol(
    changes: dict[str, Any], document: Document, path: YamlPath, own: Mapping[str, Any]
) -> tuple[Protocol, list[Problem]]:
    """A bundled protocol with some values changed: ``{base: crd, epochs: 20, teacher: {epochs: 40}}``.

    own: the suite's own ``networks`` and ``datasets``, by these keys

    Returns the protocol with what is right of the changes, and the problems.
    """
    changes = dict(changes)
    name, problems = changes.pop("base", None), []
    if isinstance(name, str) and name in protocol_names():
        base = bundled_protocol(name)
    elif isinstance(name, str):
        message = unknown("protocol", name, protocol_names(), "protocols")
        problems.append(document.problem((*path, "base"), message))
        base = fallback_protocol(name)
    else:
        message = f"'base' is missing: name the protocol that is changed, one of {', '.join(protocol_names())}"
        problems.append(document.problem(path, message))
        base = fallback_protocol("")
    original = base.model_dump(mode="json", exclude={"methods", *SET_BY_LOADER})
    whole = merged(original, changes)
    protocol, wrong = resolve(whole, original, document, path, own)
    problems += wrong or late_milestones(changes, whole, document, path)
    shown = _differences(original, {key: value for key, value in changes.items() if key not in _NOT_NAMED})
    return protocol.model_copy(
        update={
            "name": f"{base.name}* ({', '.join(shown)})" if shown else base.name,
            "base": base.name,
            "terms": {**base.terms, **protocol.terms},
        }
    ), problems


_NOT_NAMED = ("title", "trials", "methods")
"""Changes that do not rename the protocol: a method with other terms is another method."""


def _differences(original: dict[str, Any], changes: dict[str, Any]) -> list[str]:
    """The changes, such as ``epochs 20``, ``teacher.lr 0.1``."""
    differences = []
    for key, value in changes.items():
        before = original.get(key)
        if isinstance(value, dict):
            inner = _differences(before if isinstance(before, dict) else {}, value)
            differences += [f"{key}.{text}" for text in inner]
        elif key not in original or before != value:
            differences.append(f"{key} {json.dumps(value, ensure_ascii=False, default=str)}")
    return differences
