"""Building blocks of the schemas: one-or-many lists, names that must exist, and pydantic's errors in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.names import nearest
from kdbench.catalogue.networks import network
from kdbench.errors import BadInput, Problem
from kdbench.suite.yaml_reader import Document, Path_


def as_list(value: Any) -> Any:
    """Let a single value stand for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


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


def problems_of(error: ValidationError, document: Document, path: Path_, keys: Iterable[str]) -> list[Problem]:
    """Turn pydantic's errors into problems with lines. ``keys`` are the allowed keys at ``path``, for suggestions."""
    return [document.problem((*path, *_location(detail)), _message(detail, keys)) for detail in error.errors()]


def _location(detail: ErrorDetails) -> Path_:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    return location[:-1] if detail["type"] == "missing" else location


def _message(detail: ErrorDetails, keys: Iterable[str]) -> str:
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    match kind:
        case "missing":
            return f"'{detail['loc'][-1]}' is missing"
        case "extra_forbidden":
            near = nearest(str(detail["loc"][-1]), keys)
            hint = f"Did you mean '{near}'?" if near else f"Known keys: {', '.join(sorted(keys))}."
            return f"unknown key. {hint}"
        case "int_type" | "int_from_float" | "int_parsing":
            return f"must be a whole number, not {shown}"
        case "float_type" | "float_parsing":
            return f"must be a number, not {shown}"
        case "bool_type" | "bool_parsing":
            return f"must be true or false, not {shown}"
        case "string_type":
            return f"must be a name, not {shown}" + (
                " (put it in quotes)" if not isinstance(value, dict | list) else ""
            )
        case "literal_error":
            near = nearest(str(value), str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", "))
            return f"{shown} is not one of {context['expected']}." + (f" Did you mean '{near}'?" if near else "")
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            return f"{detail['msg'].replace('Input should', 'must')}, not {shown}"
        case "tuple_type" | "list_type":
            return f"must be a list, not {shown}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a mapping (key: value), not {shown}"
        case "value_error":
            return str(context["error"])
        case _:
            return detail["msg"]
