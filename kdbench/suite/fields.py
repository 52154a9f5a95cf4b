"""Building blocks of the schemas: one-or-many lists, names that must exist, and pydantic's errors in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, StrictStr, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from kdbench.catalogue import names
from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.names import nearest, unknown
from kdbench.catalogue.networks import network, networks
from kdbench.catalogue.terms import term
from kdbench.errors import BadInput, Problem
from kdbench.suite.yaml_reader import Document, Path_


Keys = Mapping[str, Iterable[str]]
"""The keys that are allowed in a mapping, under "", and those allowed in the mappings that its values are."""


def as_list(value: Any) -> Any:
    """Let a single value stand for a list of one; an empty list is refused."""
    if isinstance(value, list) and not value:
        raise PydanticCustomError("empty", "is an empty list: name at least one, or leave the key out")
    return value if isinstance(value, list | tuple) or value is None else [value]


def known_network(name: str) -> str:
    """Return the canonical name of a network; a validation error with the nearest name otherwise."""
    return _canonical(network, name)


def known_dataset(name: str) -> str:
    """Return the canonical name of a data set; a validation error with the nearest name otherwise."""
    return _canonical(dataset, name)


def _canonical(look_up: Any, name: str) -> str:
    try:
        return str(look_up(name).name)
    except BadInput as error:
        raise PydanticCustomError("unknown", "{message}", {"message": str(error)}) from None


def known_part(name: str) -> str:
    """Return the name of a term that trains a part on the finished teacher."""
    found = _canonical(term, name)
    if term(found).part is None:
        raise PydanticCustomError("part", "the term '{name}' trains nothing on the teacher first", {"name": found})
    return found


def not_empty(value: Any) -> Any:
    """Refuse a key whose value was left out, where None would mean the default."""
    if value is None:
        raise PydanticCustomError("empty", "is empty")
    return value


def known_student(name: str) -> str:
    """Return the canonical name of a network that can be trained as a student."""
    found = known_network(name)
    if not network(found).classifier:
        raise PydanticCustomError(
            "student", "{name} is an encoder for teachers: it has no classes to train for", {"name": found}
        )
    return found


def known_teacher(name: str, info: ValidationInfo) -> str:
    """Return a teacher's name: one of the suite's own (in the validation context), or a network's canonical name."""
    context = info.context or {}
    own = context["teachers"]
    if name in own:
        return name
    try:
        return str(network(name).name)
    except BadInput:
        message = unknown("teacher", name, context["among"]([*own, *networks()]), "models")
        raise PydanticCustomError("unknown", "{message}", {"message": message}) from None


NetworkName = Annotated[StrictStr, AfterValidator(known_network)]
StudentName = Annotated[StrictStr, AfterValidator(known_student)]
TeacherName = Annotated[StrictStr, AfterValidator(known_teacher)]
DatasetName = Annotated[StrictStr, AfterValidator(known_dataset)]
PartName = Annotated[StrictStr, AfterValidator(known_part)]


def problems_of(error: ValidationError, document: Document, path: Path_, keys: Keys) -> list[Problem]:
    """Turn pydantic's errors into problems with lines. ``keys``: what is allowed at ``path``, for suggestions."""
    details = error.errors(include_url=False)
    return [
        document.problem((*path, *_location(detail, document, path)), _message(detail, keys if count < 1000 else {}))
        for count, detail in enumerate(details)  # to look for thousands of nearest names takes long
    ]


def shorten(value: Any) -> str:
    """A value as a message shows it."""
    return names.shorten(f"'{value}'" if isinstance(value, str) else repr(value))


def _location(detail: ErrorDetails, document: Document, path: Path_) -> Path_:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    if detail["type"] == "missing":
        return location[:-1]
    if location and location[-1] in _PAIR and (*path, *location) not in document.lines:
        return (*location[:-1], _PAIR[location[-1]])
    return location


_PAIR: dict[str | int, int] = {"teacher": 0, "student": 1}
"""Where a pair that is written as a list has its members."""


def _message(detail: ErrorDetails, keys: Keys) -> str:
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    shown = shorten(value)
    if value is None and kind != "missing":
        return "is empty: give it a value, or leave the key out"
    match kind:
        case "missing" if isinstance(detail["loc"][-1], int):
            return f"must hold {2 if {'crop_area', 'crop_ratio'} & {*detail['loc']} else 3} values"
        case "missing":
            return f"'{detail['loc'][-1]}' is missing"
        case "extra_forbidden":
            allowed = keys.get("" if len(detail["loc"]) == 1 else str(detail["loc"][0]), ())
            near = nearest(str(detail["loc"][-1]), allowed)
            known = f" Known keys: {', '.join(sorted(allowed))}." if allowed else ""
            return "unknown key." + (f" Did you mean '{near}'?" if near else known)
        case "int_type" | "int_from_float" | "int_parsing":
            return f"must be a whole number, not {shown}"
        case "float_type" | "float_parsing":
            return f"must be a number, not {shown}"
        case "bool_type" | "bool_parsing":
            return f"must be true or false, not {shown}"
        case "string_type":
            hint = "" if isinstance(value, dict | list) else " (put it in quotes)"
            return f"must be a name, not {shown}{hint}"
        case "literal_error":
            expected = str(context["expected"])
            near = nearest(str(value), expected.replace("'", "").replace(" or ", ", ").split(", "))
            return f"{shown} is not one of {expected}." + (f" Did you mean '{near}'?" if near else "")
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            return f"{detail['msg'].replace('Input should', 'must')}, not {shown}"
        case "tuple_type" | "list_type":
            return f"must be a list, not {shown}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a mapping (key: value), not {shown}"
        case "string_too_long":
            return f"{shown} has {len(str(value)):,} letters: a name has {context['max_length']} at most"
        case "string_pattern_mismatch" | "string_too_short":
            return f"{shown} is not a name: it must be one line of text"
        case "value_error":
            return str(context["error"])
        case _:
            return detail["msg"]
