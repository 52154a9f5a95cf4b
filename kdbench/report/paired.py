"""Paired tests of two methods, Holm's correction for making several, and what difference they can detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev, variance

from kdbench.report.ranks import average_ranks


ALPHA, POWER = 0.05, 0.8
SMALL = 1e-9
"""Accuracies (%) closer than this are equal: the finest step of a test set, one image of 50,000, is 2e-3."""


@dataclass(frozen=True)
class Difference:
    """Mean difference in percentage points over n pairs of values; ``why`` says why there is no p, where there is none."""

    n: int
    mean: float | None = None
    sd: float | None = None
    p: float | None = None
    why: str = ""


def paired_t(differences: Sequence[float]) -> Difference:
    """Student's t-test, two-sided, on the differences of paired trials.

    Why t and not Wilcoxon's test: the smallest p that n signed ranks can give is 2^(1-n), so that with the usual three to
    five trials nothing could ever be significant. The price is the assumption that differences between trials are normal,
    which so few trials cannot check.
    """
    n = len(differences)
    if n < 2:
        return Difference(n, differences[0] if differences else None, why="too few trials")
    mean, sd = fmean(differences), stdev(differences)
    if sd < SMALL:
        return Difference(n, mean, 0.0, 1.0) if abs(mean) < SMALL else Difference(n, mean, 0.0, why="no variation")
    from scipy.special import stdtr  # type: ignore[import-untyped]

    return Difference(n, mean, sd, float(2 * stdtr(n - 1, -abs(mean) / (sd / n**0.5))))


def wilcoxon(differences: Sequence[float]) -> Difference:
    """Wilcoxon's signed-rank test, two-sided and exact, on the differences of means over pairs of networks.

    Pairs of networks differ in how far methods lie apart, and a few outliers are the rule; ranks need neither normal nor
    commensurable differences. Recommended for two classifiers on several data sets by Demšar, "Statistical comparisons of
    classifiers over multiple data sets", JMLR 7, 2006, and, before tests on mean ranks, which depend on what else is in
    the table, by Benavoli, Corani & Mangili, JMLR 17, 2016. Differences of zero are left out (Wilcoxon's own rule); ties
    share their mean rank, and p is counted over all signs of the ranks as they are. Pairs that share a teacher or a student
    are not independent: p is then too small.
    """
    mean = fmean(differences) if differences else None
    sd = stdev(differences) if len(differences) > 1 else None
    moved = [round(value, 9) for value in differences if abs(value) >= SMALL]
    if len(differences) >= 6 and not moved:
        return Difference(len(differences), mean, sd, 1.0)
    if len(moved) < 6:  # 2^(1-5) = 0.06: no result could be significant
        return Difference(len(differences), mean, sd, why="too few pairs")
    doubled = [round(2 * rank) for rank in average_ranks([-abs(value) for value in moved])]
    positive = sum(rank for rank, value in zip(doubled, moved, strict=True) if value > 0)
    smaller = min(positive, sum(doubled) - positive)
    return Difference(len(differences), mean, sd, min(1.0, 2 * _chance_of_at_most(smaller, doubled)))


def _chance_of_at_most(limit: int, ranks: Sequence[int]) -> float:
    """The chance that the ranks with a positive sign sum up to ``limit`` or less, if every sign is a toss of a coin."""
    import numpy

    chances = numpy.zeros(sum(ranks) + 1)
    chances[0] = 1.0
    for rank in ranks:
        tossed = chances / 2
        tossed[rank:] += chances[:-rank] / 2
        chances = tossed
    return float(chances[: limit + 1].sum())


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Step-down corrected p-values of a family of tests; tests that could not be made do not count (Holm 1979)."""
    made = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for place, (p, index) in enumerate(made):
        highest = max(highest, min(1.0, p * (len(made) - place)))
        corrected[index] = highest
    return corrected


def pooled_sd(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of paired differences, pooled over comparisons by degrees of freedom; None without any."""
    usable = [group for group in groups if len(group) > 1]
    if not usable:
        return None
    freedom = sum(len(group) - 1 for group in usable)
    return math.sqrt(sum((len(group) - 1) * variance(group) for group in usable) / freedom)


def detectable(sd: float | None, trials: int, tests: int = 1) -> float | None:
    """The true difference that a paired t-test over ``trials`` trials finds in 80 % of cases (two-sided, α = 0.05).

    ``sd`` is that of single differences. ``tests`` is the number of comparisons of which this is Holm's first, at α / tests.
    None where it cannot be said: fewer than two trials, or no variation.
    """
    return None if sd is None or sd < SMALL or trials < 2 else sd * effect(trials, ALPHA / max(tests, 1))


@cache
def effect(trials: int, alpha: float = ALPHA) -> float:
    """The smallest difference that is detectable at the level ``alpha``, in units of the differences' standard deviation."""
    import numpy
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import chdtri, ndtr, stdtrit

    freedom = trials - 1
    quantiles = chdtri(freedom, (numpy.arange(400) + 0.5) / 400)  # of the estimated variance
    limits = float(stdtrit(freedom, 1 - alpha / 2)) * numpy.sqrt(quantiles / freedom)

    def power(size: float) -> float:
        """P(|T| > threshold) for Student's T with a shifted mean: scipy's own gives nan for one degree of freedom."""
        shift = size * math.sqrt(trials)
        return fmean((ndtr(shift - limits) + ndtr(-shift - limits)).tolist())

    return float(brentq(lambda size: power(size) - POWER, 1e-3, 1e7))
