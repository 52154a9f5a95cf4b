"""Which numbers of a table stand out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from kdbench.report.layouts import Band, Layout, Rule
from kdbench.report.sheet import Mark


Places = list[tuple[int, int]]
"""Rows and columns."""
_STYLES: dict[str, Mark] = {"bold": Mark.best, "underline": Mark.second, "none": Mark.none}


def marks(layout: Layout, band: Band, compare: Callable[[Places], Sequence[float | None]]) -> list[list[Mark]]:
    """The marks of a band's numbers, row by row, by the paper's own rules.

    ``compare`` gives the numbers of places that the paper compares with each other; None for what does not count.
    """
    found = [[Mark.none] * len(band.columns) for _ in band.rows]
    for rank, rule in enumerate((layout.highlight.best, layout.highlight.second)):
        if rule is None:
            continue
        for group in _compared(band, rule):
            for at in outstanding(compare(group), rank, _sense(rule, band, group)):
                row, column = group[at]
                found[row][column] = _STYLES[rule.style]
    return found


def outstanding(numbers: Sequence[float | None], rank: int = 0, sense: Literal["max", "min"] = "max") -> list[int]:
    """The places of the best numbers (``rank`` 0) or the second best (1).

    Equal ones stand out alike; none does where only one is known.
    """
    known = [number for number in numbers if number is not None]
    ordered = sorted(set(known), reverse=sense == "max")
    if len(known) < 2 or rank >= len(ordered):
        return []
    return [at for at, number in enumerate(numbers) if number == ordered[rank]]


def _compared(band: Band, rule: Rule) -> list[Places]:
    """The places, as row and column, that are compared with each other."""
    rows, columns = range(len(band.rows)), range(len(band.columns))
    if rule.axis == "column":
        groups = [[(row, column) for row in rows] for column in columns]
    else:
        groups = [[(row, column) for column in columns] for row in rows]
    return [[place for place in group if not _excluded(band, rule, place)] for group in groups]


def _excluded(band: Band, rule: Rule, place: tuple[int, int]) -> bool:
    row, column = band.rows[place[0]], band.columns[place[1]]
    return (row.select.get("method") or column.select.get("method")) in rule.exclude


def _sense(rule: Rule, band: Band, group: Places) -> Literal["max", "min"]:
    if rule.sense == "per column":
        return band.columns[group[0][1]].best or "max" if group else "max"
    return rule.sense
