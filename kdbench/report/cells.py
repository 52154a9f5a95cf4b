"""Cells of tables: mean, deviation, comparison with the published number, marks for the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import fsum, sqrt
from typing import Literal

from kdbench.catalogue.tables import Band, Layout, Rule
from kdbench.report.options import TOLERANCE, View
from kdbench.report.published import Published
from kdbench.report.sheet import Mark


DECIMALS = 2
"""Digits behind the point, where no paper's table says else."""


class Verdict(StrEnum):
    """How a measured mean stands to the printed one."""

    agrees = "agrees"
    above = "higher"
    below = "lower"
    few = "too few trials"


@dataclass(frozen=True)
class Cell:
    """Mean and sample deviation (ddof 1; None with one trial) over n trials of ``planned``; ``note`` says what lacks.

    ``percent`` is False for numbers that are no percentages, such as divergences. A verdict needs ``enough`` trials.
    ``values`` are the single ones, by trial.
    """

    mean: float | None
    sd: float | None
    n: int
    planned: int
    published: Published | None = None
    note: str = ""
    percent: bool = True
    enough: int = 2
    values: dict[int, float] = field(default_factory=dict)

    @property
    def difference(self) -> float | None:
        """Measured minus printed; None where either lacks."""
        if self.mean is None or self.published is None or self.published.value is None:
            return None
        return self.mean - self.published.value

    def verdict(self, tolerance: float = TOLERANCE) -> Verdict | None:
        """Within two printed deviations, or ``tolerance`` points where none is printed; None where that says nothing."""
        difference = self.difference
        if difference is None or self.published is None:
            return None
        if self.published.sd is None and not self.percent:
            return None
        if self.n < self.enough:
            return Verdict.few
        allowed = tolerance if self.published.sd is None else 2 * self.published.sd
        if abs(difference) <= allowed + 1e-9:  # 75.5 - 75.0 is not quite 0.5
            return Verdict.agrees
        return Verdict.above if difference > 0 else Verdict.below


def make_cell(
    trials: Iterable[tuple[int, float | None, str]],
    printed: Published | None = None,
    *,
    percent: bool = True,
    enough: int = 2,
) -> Cell:
    """Aggregate trials, each its number and a value, or the reason why there is none."""
    found = list(trials)
    values = [value for _, value, _ in found if value is not None]
    reasons = Counter(reason for _, value, reason in found if value is None)
    mean = fsum(values) / len(values) if values else None
    return Cell(
        mean=mean,
        sd=_deviation(values, mean) if mean is not None and len(values) > 1 else None,
        n=len(values),
        planned=len(found),
        published=printed,
        note="; ".join(f"{reason} ({count} of {len(found)})" for reason, count in reasons.items()),
        percent=percent,
        enough=enough,
        values={trial: value for trial, value, _ in found if value is not None},
    )


def _deviation(values: list[float], mean: float) -> float:
    return sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def cell_text(cell: Cell | None, view: View, *, decimals: int = DECIMALS, tolerance: float = TOLERANCE) -> str:
    """``76.20 ± 0.10 (3)``; under the view `both` with ``| 76.23`` behind it; ``–`` where there is nothing to show."""
    if cell is None:
        return ""
    match view:
        case View.published:
            return cell.published.text if cell.published else "–"
        case View.difference:
            return "–" if cell.difference is None else f"{cell.difference:+.{decimals}f}"
        case View.verdict:
            return cell.verdict(tolerance) or "–"
    text, behind = measured_text(cell, decimals), published_behind(cell, view)
    return f"{text} {behind}" if behind else text


def published_behind(cell: Cell | None, view: View) -> str:
    """``| 76.23``, the end of a cell's text under the view `both`, which no mark covers; else ""."""
    return f"| {cell.published.text}" if view is View.both and cell and cell.published else ""


def measured_text(cell: Cell, decimals: int = DECIMALS) -> str:
    """Mean, deviation and number of trials."""
    text = "–" if cell.mean is None else f"{cell.mean:.{decimals}f}"
    if cell.sd is not None:
        text += f" ± {cell.sd:.{decimals}f}"
    if cell.n:
        text += f" ({cell.n})" if cell.n == cell.planned else f" ({cell.n} of {cell.planned})"
    return text


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
