"""How each method looks in pictures and in the charts of the HTML report (palette.yaml)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple
from zlib import crc32

import yaml


class MethodStyle(NamedTuple):
    """The names of a colour and of a line, and a marker in matplotlib's letters."""

    colour: str
    line: str
    marker: str


@cache
def _table() -> dict[str, Any]:
    text = files("kdbench.catalogue").joinpath("palette.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def colours() -> dict[str, tuple[str, str]]:
    """Each colour's shade on a white and on a dark ground, as ``#rrggbb``."""
    return {name: (light, dark) for name, (light, dark) in _table()["colours"].items()}


def dashes(line: str) -> list[float]:
    """The lengths of a line's dashes and gaps in widths of the line; none for a solid line."""
    found: list[float] = _table()["lines"][line]
    return found


@cache
def named_styles() -> dict[str, MethodStyle]:
    """The styles of the methods that the table has, and of the teacher."""
    return {name: MethodStyle(*text.split()) for name, text in _table()["methods"].items()}


def method_style(name: str) -> MethodStyle:
    """The style of a method, whatever values of a sweep it has; one of its own by its name where the table has none."""
    method = name.partition("[")[0]
    if method in named_styles():
        return named_styles()[method]
    shades, markers, number = list(colours()), _table()["markers"], crc32(method.encode())
    shade, marker = shades[number % len(shades)], markers[number // len(shades) % len(markers)]
    return MethodStyle(shade, _table()["own"], marker)


def method_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """The styles of methods that are drawn together, in their order.

    Methods of the table have theirs. Another one, or a further value of a sweep, keeps its colour; where its line and marker
    are another's, it takes the next ones that are free.
    """
    names = list(dict.fromkeys(names))
    found = {name: style for name in names if (style := named_styles().get(name))}
    taken = {style[1:] for style in found.values()}
    lines, markers = list(_table()["lines"]), _table()["markers"]
    for name in names:
        if name not in found:
            style = method_style(name)
            line, marker = lines.index(style.line), markers.index(style.marker)
            pairs = [
                (lines[(line + step) % len(lines)], markers[(marker + step) % len(markers)])
                for step in range(len(lines) * len(markers))
            ]
            free = next((pair for pair in pairs if pair not in taken), pairs[0])
            found[name] = MethodStyle(style.colour, *free)
            taken.add(free)
    return {name: found[name] for name in names}
