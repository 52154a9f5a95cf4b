"""Single YAML values: what YAML 1.1 reads as something else than what was meant."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml


_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_LARGEST = 2**63
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters but tabs and line feeds, separators of lines, and halves of characters."""


def read_scalar(node: yaml.ScalarNode) -> tuple[Any, str]:
    """The value that was probably meant, and what is wrong with its spelling ("" where nothing is)."""
    text: str = node.value
    if UNPRINTABLE.search(text):
        return None, f"{_short(repr(text))} holds a character that cannot be printed: leave it out."
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if node.style in ("'", '"', "|", ">"):
        return text, ""
    trap = _trap(kind, text)
    try:
        value = _value(kind, text)
    except (ValueError, OverflowError):
        return text, trap or f"'{_short(text)}' cannot be read as {kind}: put it in quotes."
    usable = abs(value) < _LARGEST if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)
    if not usable:
        return None, trap or f"'{_short(text)}' is not a number that can be used: write a finite, smaller one."
    return value, trap


def _value(kind: str, text: str) -> Any:
    plain = text.replace("_", "").lower()
    if kind == "null":
        return None
    if kind == "bool":
        return plain in ("true", "yes", "on")
    if kind == "float" or (kind == "str" and _EXPONENT.fullmatch(text)):
        return text if ":" in text else float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        return text if ":" in text else int(plain, 8) if _OCTAL.fullmatch(text) else int(plain, 0)
    return text


def _trap(kind: str, text: str) -> str:
    if kind == "str" and _EXPONENT.fullmatch(text):
        mantissa, _, exponent = text.lower().partition("e")
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"'{text}' is text in YAML 1.1: write {mantissa}e{sign}."
    if kind == "bool" and text.lower() not in ("true", "false"):
        meaning = "true" if text.lower() in ("yes", "on") else "false"
        return f"'{text}' is {meaning} in YAML 1.1: write {meaning} if that is meant, else '{text}' in quotes."
    if kind == "int" and _OCTAL.fullmatch(text):
        return f"'{_short(text)}' is an octal number in YAML 1.1: write it without the leading zero."
    if kind in ("int", "float") and ":" in text:
        return f"'{text}' is a base-60 number in YAML 1.1: put it in quotes, or write the number out."
    if kind not in ("str", "int", "float", "bool", "null"):
        return f"'{_short(text)}' is read as a {kind} in YAML 1.1: put it in quotes."
    return ""


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"
