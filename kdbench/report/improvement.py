"""Relative improvement (RI) and its average (ARI), eq. 17 of SemCKD (TKDE 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Improvement:
    """The average relative improvement in % over ``n`` pairs; ``undefined`` pairs had nothing to relate it to.

    ``least`` is the smallest gain (percentage points) that it is related to: the ratio of a tiny one says little.
    """

    percent: float | None
    n: int
    undefined: int
    least: float | None = None


def relative_improvement(target: float, other: float, plain: float) -> float | None:
    """(target − other) / (other − plain) in %: what the target adds, in terms of what the other adds to the plain student.

    None where the other method does not improve on the plain student: the ratio would be infinite, or have the wrong sign.
    The paper does not say what it does there; none of its cells is of that kind.
    """
    gain = round(other - plain, 9)
    return 100 * (target - other) / gain if gain > 0 else None


def average_improvement(triples: Sequence[tuple[float, float, float]]) -> Improvement:
    """ARI over (target, other, plain) accuracies of several pairs."""
    found = [relative_improvement(*triple) for triple in triples]
    defined = [value for value in found if value is not None]
    undefined = len(found) - len(defined)
    if not defined:
        return Improvement(None, 0, undefined)
    gains = [other - plain for value, (_, other, plain) in zip(found, triples, strict=True) if value is not None]
    return Improvement(fmean(defined), len(defined), undefined, min(gains))
