"""Cells of tables as DataFrames: mean and deviation, comparison with the published number, and text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from math import fsum, sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd

from kdbench.reporting.options import TOLERANCE, View


DECIMALS = 2
"""Decimals where no paper's table says otherwise."""

SUMMARY = ["mean", "sd", "n", "planned", "note"]
"""Mean and sample deviation (ddof 1; NaN for one trial) over `n` trials of `planned`, and why the other trials have none."""


class Verdict(StrEnum):
    """How a measured mean compares with the published one."""

    agrees = "agrees"
    above = "higher"
    below = "lower"
    few = "too few trials"


def summarise(trials: pd.DataFrame, by: list[str], value: str = "value") -> pd.DataFrame:
    """The SUMMARY of each group of trials and its ``values`` by trial, in order of appearance and indexed by ``by``.

    ``trials`` has the columns ``trial``, ``value``'s and ``reason``, why there is none.
    """
    grouped = trials.groupby(by, sort=False)[["trial", value, "reason"]].agg(list)
    summaries = [_summary(*lists) for lists in grouped.itertuples(index=False)]
    return pd.DataFrame(summaries, index=grouped.index, columns=[*SUMMARY, "values"])


def _summary(trials: list[int], values: list[float], reasons: list[str]) -> tuple[Any, ...]:
    measured = [(trial, value) for trial, value in zip(trials, values, strict=True) if value == value]
    lacking = Counter(reason for value, reason in zip(values, reasons, strict=True) if value != value)
    n, planned, mean, sd = len(measured), len(values), float("nan"), float("nan")
    if n:
        mean = fsum(value for _, value in measured) / n
    if n > 1:
        sd = sqrt(fsum((value - mean) ** 2 for _, value in measured) / (n - 1))
    note = "; ".join(f"{reason} ({count} of {planned})" for reason, count in lacking.items())
    return mean, sd, n, planned, note, dict(measured)


def difference(cells: pd.DataFrame) -> pd.Series:
    """Measured minus published; NaN where either is missing."""
    return cells["mean"] - cells["published"]


def verdict(cells: pd.DataFrame, tolerance: float = TOLERANCE) -> list[str]:
    """`agrees` within two published deviations, or ``tolerance`` points if none is published; "" if nothing is compared.

    A verdict needs ``enough`` trials. Only numbers that are a ``percent`` are judged by the tolerance.
    """
    measured = difference(cells)
    allowed = (2 * cells["published_sd"]).fillna(tolerance) + 1e-9  # 75.5 - 75.0 is not quite 0.5
    judged = measured.notna() & (cells["published_sd"].notna() | cells["percent"])
    few, agrees, above = cells["n"] < cells["enough"], measured.abs() <= allowed, measured > 0
    names = [Verdict.few.value, Verdict.agrees.value, Verdict.above.value]
    found = np.select([~judged, few, agrees, above], ["", *names], Verdict.below.value)
    return [str(name) for name in found]


def cell_texts(cells: pd.DataFrame, view: View, tolerance: float = TOLERANCE) -> list[str]:
    """``76.20 ± 0.10 (3)``; under the view `both` followed by ``| 76.23``; ``–`` where there is nothing to show."""
    match view:
        case View.published:
            return [text or "–" for text in cells["printed"]]
        case View.difference:
            numbers = zip(difference(cells), cells["decimals"], strict=True)
            return ["–" if number != number else f"{number:+.{decimals}f}" for number, decimals in numbers]
        case View.verdict:
            return [name or "–" for name in verdict(cells, tolerance)]
    texts = map(measured_text, cells["mean"], cells["sd"], cells["n"], cells["planned"], cells["decimals"])
    return [f"{text} {suffix}" if suffix else text for text, suffix in zip(texts, suffixes(cells, view), strict=True)]


def suffixes(cells: pd.DataFrame, view: View) -> list[str]:
    """``| 76.23``, the end of each text under the view `both`, which no emphasis covers; else ""."""
    return [f"| {text}" if text and view is View.both else "" for text in cells["printed"]]


def measured_text(mean: float, sd: float, n: int, planned: int, decimals: int = DECIMALS) -> str:
    """Mean, deviation and number of trials."""
    text = "–" if mean != mean else f"{mean:.{decimals}f}"
    if sd == sd:
        text += f" ± {sd:.{decimals}f}"
    if n:
        text += f" ({n})" if n == planned else f" ({n} of {planned})"
    return text


def best_positions(numbers: Sequence[float | None], rank: int = 0, sense: Literal["max", "min"] = "max") -> list[int]:
    """The positions of the best numbers (``rank`` 0) or the second best (1): all equal ones, none if only one is known."""
    known = [number for number in numbers if number is not None]
    ordered = sorted(set(known), reverse=sense == "max")
    if len(known) < 2 or rank >= len(ordered):
        return []
    return [at for at, number in enumerate(numbers) if number == ordered[rank]]
