"""Whether values fit the hyper-parameters of a term, told from the annotations in its source."""

from __future__ import annotations

import ast
import math
from typing import Any

from kdbench.catalogue.names import nearest
from kdbench.catalogue.terms import TermInfo


def check_hyperparameters(info: TermInfo, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Compare given hyper-parameters with a term's; return (key, message) for each unknown name or wrong type."""
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
    """Say what an annotation wants where a value is not that; "" where it is, or the annotation is not understood."""
    match annotation:
        case ast.Name("bool"):
            return "" if isinstance(value, bool) else "true or false"
        case ast.Name("int"):
            return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
        case ast.Name("float"):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            return "" if number else "a number"
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
