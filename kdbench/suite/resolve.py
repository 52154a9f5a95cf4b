"""From a protocol's raw values to its settings and methods, with every problem on the way."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import networks
from kdbench.errors import BadInput, Problem
from kdbench.suite.fields import problems_of, shorten
from kdbench.suite.methods import Terms, parse_terms
from kdbench.suite.recipe import LearningRate
from kdbench.suite.settings import Protocol
from kdbench.suite.specs import Recipe
from kdbench.suite.yaml_reader import Document, Path_


Schema = TypeVar("Schema", bound=Recipe)
_RATE: TypeAdapter[float] = TypeAdapter(LearningRate)
SECTIONS = ("teacher", "head", "head_simultaneous", "pretraining", "fine_tune")
"""The parts of a protocol that override single values of its recipe."""


def merged(original: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The original's values with single ones replaced, within teacher, head and each data set, too."""
    raw = {**original, **changes}
    for key in ("lr_for", "simclr", *SECTIONS):
        raw[key] = _merge(original.get(key), raw[key])
    old, new = original.get("parts", {}), raw["parts"]
    if isinstance(new, dict):
        raw["parts"] = {**old, **{name: _merge(old.get(name), values) for name, values in new.items()}}
    if isinstance(raw["datasets"], dict):
        old = original.get("datasets", {})
        new = {name: _merge(old.get(_canonical(name)), values) for name, values in raw["datasets"].items()}
        raw["datasets"] = {**old, **new}
    return raw


def _merge(original: Any, changes: Any) -> Any:
    return {**original, **changes} if isinstance(original, dict) and isinstance(changes, dict) else changes


def _canonical(name: str) -> str:
    try:
        return dataset(name).name
    except BadInput:
        return name


def resolve(
    raw: Any, fallback: dict[str, Any], document: Document, path: Path_
) -> tuple[Protocol | None, dict[str, Terms], list[Problem]]:
    """Validate a protocol's raw values. Where one is wrong, the one in ``fallback`` takes its place.

    Returns settings (None without a fallback), methods, and the problems.
    """
    if not isinstance(raw, dict):
        return None, {}, [document.problem(path, "a protocol is a mapping")]
    problems: list[Problem] = []
    settings = _check(Protocol, raw, fallback, document, path, problems)
    if settings is not None:
        whole = settings.model_dump(include=set(Recipe.model_fields))
        for where, values in _sections(raw).items():
            _check(Recipe, {**whole, **values}, whole, document, (*path, *where), problems)
        problems += _wrong_rates(raw, document, path)
        if not problems:
            problems += _clashes(settings, document, path)
    methods: dict[str, Terms] = {}
    given = raw.get("methods")
    for name, value in given.items() if isinstance(given, dict) else ():
        methods[name] = parse_terms(value, _reporter(problems, document, (*path, "methods", name)))
    return settings, methods, problems


def _check(
    schema: type[Schema],
    values: dict[str, Any],
    fallback: dict[str, Any],
    document: Document,
    path: Path_,
    problems: list[Problem],
) -> Schema | None:
    """Validate values; those that are wrong are reported, and the fallback's are taken."""
    keys = {"": schema.model_fields}
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, document, path, keys)
        wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
    rest = {key: value for key, value in values.items() if key not in wrong}
    restored = {key: fallback[key] for key in wrong if key in fallback}
    try:
        return schema.model_validate({**rest, **restored})
    except ValidationError as error:
        if wrong:  # what fields say together was not looked at before
            problems += [p for p in problems_of(error, document, path, keys) if not error.errors()[0]["loc"]]
    return schema.model_validate(fallback) if fallback else None


def _sections(raw: dict[str, Any]) -> dict[Path_, dict[str, Any]]:
    """The parts of a protocol that override single values of its recipe, by their place."""
    parts: dict[Path_, Any] = {(key,): raw.get(key) for key in SECTIONS}
    each = raw.get("datasets")
    parts |= {("datasets", name): values for name, values in (each.items() if isinstance(each, dict) else ())}
    whole = {where: values for where, values in parts.items() if isinstance(values, dict)}
    each = raw.get("parts")
    for name, values in each.items() if isinstance(each, dict) else ():
        if isinstance(values, dict):
            whole["parts", name] = {key: value for key, value in values.items() if key != "lr_for"}
    return whole


def late_milestones(said: dict[str, Any], whole: dict[str, Any], document: Document, path: Path_) -> list[Problem]:
    """Milestones that are ``said`` and lie beyond the last epoch, which a section has from the ``whole`` where not said."""
    found = []
    for where, section in {(): said, **_sections(said)}.items():
        milestones = section.get("milestones")
        above: Any = whole.get(_ABOVE.get(str(where[0]), "")) if where else None
        own: Any = whole
        for key in where:
            own = own[key]
        epochs = own.get("epochs", (above or {}).get("epochs", whole["epochs"]))
        late = [each for each in milestones if isinstance(each, int)] if isinstance(milestones, list) else []
        if late and isinstance(epochs, int) and max(late) > epochs:
            message = f"the rate would fall after epoch {max(late)}, but there are {epochs}"
            found.append(document.problem((*path, *where, "milestones"), message))
    return found


_ABOVE = {"fine_tune": "teacher", "head_simultaneous": "head"}
"""What a section overrides that is not the recipe itself."""


def _wrong_rates(raw: dict[str, Any], document: Document, path: Path_) -> list[Problem]:
    """What is wrong with the rates of parts by student."""
    found = []
    each = raw.get("parts")
    for name, values in each.items() if isinstance(each, dict) else ():
        rates = values.get("lr_for", {}) if isinstance(values, dict) else {}
        where = (*path, "parts", name, "lr_for")
        if not isinstance(rates, dict):
            found.append(document.problem(where, "must be a mapping of students to rates, such as {resnet*: 0.01}"))
            continue
        for pattern, rate in rates.items():
            try:
                _RATE.validate_python(rate)
            except ValidationError:
                message = f"must be a number above 0, up to 100, not {shorten(rate)}"
                found.append(document.problem((*where, pattern), message))
            if not any(fnmatchcase(network, str(pattern)) for network in networks()):
                message = f"no network is called '{pattern}'  (kdbench list models)"
                found.append(document.problem((*where, pattern), message))
    return found


def _clashes(settings: Protocol, document: Document, path: Path_) -> list[Problem]:
    """Overrides that are right one by one but not together, such as Nesterov here and no momentum there."""
    found = []
    sections: list[tuple[str, Callable[[str], object]]] = [
        ("teacher", lambda name: settings.teacher_recipe("", name)),
        ("head", lambda name: settings.head_spec(name, simultaneous=False)),
        ("head_simultaneous", lambda name: settings.head_spec(name, simultaneous=True)),
        ("pretraining", lambda name: settings.pretraining_spec("", name)),
        ("fine_tune", lambda name: settings.fine_tune_recipe("", name)),
        *(("parts", partial(settings.part_recipe, term, "")) for term in settings.parts),
    ]
    for name in ("", *settings.datasets):
        for section, build in sections:
            if section in ("pretraining", "fine_tune") and not getattr(settings, section):
                continue  # what it inherits is reported where it stands
            try:
                build(name)
            except ValidationError as error:
                where = f" on {name}" if name else ""
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                found.append(document.problem((*path, section), message + where))
    return found


def _reporter(problems: list[Problem], document: Document, path: Path_) -> Callable[[Path_, str], None]:
    return lambda inner, message: problems.append(document.problem((*path, *inner), message))
