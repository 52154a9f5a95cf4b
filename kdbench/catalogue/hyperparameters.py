"""The valid values of a term's hyper-parameters, from the annotations in its source."""

from __future__ import annotations

import ast
import math
import sys
from typing import Annotated, Any, NamedTuple

from kdbench.catalogue.terms import TermInfo
from kdbench.catalogue.text import nearest


class Range(NamedTuple):
    """The numbers that a hyper-parameter may be, and the same in words. More than a million only overflows."""

    words: str
    low: float
    high: float
    whole: bool = False


RANGES = {
    "PositiveNumber": Range("a number above 0, up to 1,000,000", math.ulp(0.0), 1e6),
    "NonNegative": Range("a number from 0 to 1,000,000", 0.0, 1e6),
    "Share": Range("a number from 0 to 1", 0.0, 1.0),
    "PositiveInt": Range("a whole number from 1 to 1,000,000", 1, 1e6, whole=True),
    "NonNegativeInt": Range("a whole number from 0 to 1,000,000", 0, 1e6, whole=True),
    "int": Range("a whole number", -math.inf, math.inf, whole=True),
    "float": Range("a number", -sys.float_info.max, sys.float_info.max),
}
"""The ranges by the names that annotations call them by."""

PositiveNumber = Annotated[float, RANGES["PositiveNumber"]]
NonNegative = Annotated[float, RANGES["NonNegative"]]
Share = Annotated[float, RANGES["Share"]]
PositiveInt = Annotated[int, RANGES["PositiveInt"]]
NonNegativeInt = Annotated[int, RANGES["NonNegativeInt"]]


def check_hyperparameters(info: TermInfo, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Compare given hyper-parameters with a term's; return (key, message) for each unknown name or wrong value."""
    problems = []
    for key, value in values.items():
        known = info.hyperparameters.get(key)
        if known is None:
            problems.append((key, f"unknown hyper-parameter '{key}' of {info.name}. {_right_name(key, info)}"))
        elif known.annotation and (wanted := _mismatch(ast.parse(known.annotation, mode="eval").body, value)):
            problems.append((key, f"{key} must be {wanted}, not {value!r}"))
    return problems


def _right_name(key: str, info: TermInfo) -> str:
    if match := nearest(key, info.hyperparameters):
        return f"Did you mean '{match}'?"
    return f"It has {', '.join(info.hyperparameters) or 'none'}."


def _mismatch(annotation: ast.expr, value: object) -> str:
    """Describe what an annotation requires if a value does not match; "" if it does, or cannot be checked."""
    match annotation:
        case ast.Name("bool"):
            return "" if isinstance(value, bool) else "true or false"
        case ast.Name(name) if name in RANGES:
            words, low, high, whole = RANGES[name]
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                return words
            return "" if low <= value <= high else words
        case ast.Name("str"):
            return "" if isinstance(value, str) else "text"
        case ast.Constant(None):
            return "" if value is None else "null"
        case ast.Subscript(ast.Name("Literal"), slice=choices):
            options = [
                ast.literal_eval(each) for each in (choices.elts if isinstance(choices, ast.Tuple) else [choices])
            ]
            fits = any(value == option and type(value) is type(option) for option in options)
            return "" if fits else f"one of {', '.join(map(repr, options))}"
        case ast.BinOp(left, ast.BitOr(), right):
            wants = [_mismatch(left, value), _mismatch(right, value)]
            return " or ".join(wants) if all(wants) else ""
    return ""
