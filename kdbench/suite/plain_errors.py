"""Pydantic's errors as problems of a document, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kdbench.catalogue import text
from kdbench.catalogue.text import nearest
from kdbench.errors import Problem
from kdbench.suite.yaml_reader import Document, YamlPath


Keys = Mapping[str, Iterable[str]]
"""The keys that are allowed in a mapping, under "", and those allowed in the mappings that its values are."""


def problems_of(error: ValidationError, document: Document, path: YamlPath, keys: Keys) -> list[Problem]:
    """Turn pydantic's errors into problems with lines. ``keys``: what is allowed at ``path``, for suggestions."""
    details = error.errors(include_url=False)
    return [
        document.problem((*path, *_location(detail, document, path)), _message(detail, keys if count < 1000 else {}))
        for count, detail in enumerate(details)  # to look for thousands of nearest names takes long
    ]


def shorten(value: Any) -> str:
    """A value as a message shows it."""
    return text.shorten(f"'{value}'" if isinstance(value, str) else repr(value))


def _location(detail: ErrorDetails, document: Document, path: YamlPath) -> YamlPath:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    if detail["type"] == "missing":
        return location[:-1]
    if location and location[-1] in _PAIR and (*path, *location) not in document.lines:
        return (*location[:-1], _PAIR[location[-1]])
    return location


_PAIR: dict[str | int, int] = {"teacher": 0, "student": 1}
"""The positions of the members of a pair that is written as a list."""


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
            owner = next((key for key in reversed(detail["loc"][:-1]) if key in keys), "")
            allowed = keys.get(str(owner), ())
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
