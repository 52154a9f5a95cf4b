"""One cell of a table: the trials' mean, the printed number, and what a view shows of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import fsum, sqrt

from kdbench.report.formats import TOLERANCE, View
from kdbench.report.published import Published


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
