"""What difference a number of trials can detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, variance

from kdbench.report.paired import SMALL


ALPHA, POWER = 0.05, 0.8


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
    from scipy.special import chdtri, ndtr, stdtrit  # type: ignore[import-untyped]

    freedom = trials - 1
    quantiles = chdtri(freedom, (numpy.arange(400) + 0.5) / 400)  # of the estimated variance
    limits = float(stdtrit(freedom, 1 - alpha / 2)) * numpy.sqrt(quantiles / freedom)

    def power(size: float) -> float:
        """P(|T| > threshold) for Student's T with a shifted mean: scipy's own gives nan for one degree of freedom."""
        shift = size * math.sqrt(trials)
        return fmean((ndtr(shift - limits) + ndtr(-shift - limits)).tolist())

    return float(brentq(lambda size: power(size) - POWER, 1e-3, 1e7))
