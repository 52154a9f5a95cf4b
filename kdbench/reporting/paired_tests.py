"""Paired samples, tests between methods, and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import pandas as pd

from kdbench.reporting.keys import Pair


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
    doubled = [round(2 * rank) for rank in pd.Series(moved).abs().rank()]
    positive = sum(rank for rank, value in zip(doubled, moved, strict=True) if value > 0)
    smaller = min(positive, sum(doubled) - positive)
    return Difference(len(differences), mean, sd, min(1.0, 2 * _chance_of_at_most(smaller, doubled)))


def _chance_of_at_most(limit: int, ranks: Sequence[int]) -> float:
    """The chance that the ranks with a positive sign sum up to ``limit`` or less, if every sign is a toss of a coin."""
    chances = np.zeros(sum(ranks) + 1)
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
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import chdtri, ndtr, stdtrit

    freedom = trials - 1
    quantiles = chdtri(freedom, (np.arange(400) + 0.5) / 400)  # of the estimated variance
    limits = float(stdtrit(freedom, 1 - alpha / 2)) * np.sqrt(quantiles / freedom)

    def power(size: float) -> float:
        """P(|T| > threshold) for Student's T with a shifted mean: scipy's own gives nan for one degree of freedom."""
        shift = size * math.sqrt(trials)
        return fmean((ndtr(shift - limits) + ndtr(-shift - limits)).tolist())

    return float(brentq(lambda size: power(size) - POWER, 1e-3, 1e7))


def relative_improvement(target: float, other: float, plain: float) -> float | None:
    """(target − other) / (other − plain) in %: what the target adds, in terms of what the other adds to the plain student.

    None where the other method does not improve on the plain student: the ratio would be infinite, or have the wrong sign.
    The paper does not say what it does there; none of its cells is of that kind.
    """
    gain = round(other - plain, 9)
    return 100 * (target - other) / gain if gain > 0 else None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean rank of each method over the pairs where all of them are measured; 1 is best.

    Only the trials count that all of them have: ``trials`` are the fewest and the most in a pair.
    Two methods differ (α = 0.05) where their mean ranks lie at least ``critical_difference`` apart. ``left_out`` counts the
    methods and pairs of the table that are not in it, for want of a cell. ``why`` says why there is no test.
    """

    ranks: dict[str, float]
    pairs: int
    trials: tuple[int, int]
    chi_square: float | None = None
    p: float | None = None
    critical_difference: float | None = None
    left_out: tuple[int, int]
    why: str = ""


def rank_methods(samples: Samples) -> Ranking:
    """Rank the methods by their means over common trials within each pair, and average.

    Friedman's χ² is corrected for ties. It is used as it is, though Iman and Davenport's F is stronger: with two or three
    pairs that agree F is infinite, while the exact p may be 0.17.
    """
    methods, pairs = complete_block(samples)
    left_out = (len(samples.methods) - len(methods), len(samples.pairs) - len(pairs))
    means = pd.DataFrame([samples.paired_means(methods, pair) for pair in pairs], columns=methods, dtype=float).round(9)
    table = means.rank(axis=1, ascending=False)
    counts = [len(samples.common(methods, pair)) for pair in pairs] or [0]
    ranks = {method: math.fsum(table[method]) / len(pairs) for method in methods}
    ranking = Ranking(ranks=ranks, pairs=len(pairs), trials=(min(counts), max(counts)), left_out=left_out)
    if len(pairs) < 2:
        return replace(ranking, why="too few pairs")
    if len(methods) < 3:
        return replace(ranking, why="two methods: Wilcoxon's test compares them")
    chi_square = _friedman(table.to_numpy().tolist())
    if chi_square is None:
        return replace(ranking, why="all methods tie everywhere")
    from scipy.special import chdtrc

    p = float(chdtrc(len(methods) - 1, chi_square))
    difference = critical_difference(len(methods), len(pairs))
    return replace(ranking, chi_square=chi_square, p=p, critical_difference=difference)


@cache
def critical_difference(methods: int, pairs: int) -> float:
    """Nemenyi's critical difference of mean ranks, α = 0.05: q √(k(k+1) / 6N), q the studentized range's quantile / √2."""
    return _range_quantile(methods) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * pairs))


def _range_quantile(methods: int) -> float:
    if methods <= len(_QUANTILES) + 1:
        return _QUANTILES[methods - 2]
    from scipy.stats import studentized_range  # type: ignore[import-untyped]

    return float(studentized_range.ppf(0.95, methods, math.inf))


_QUANTILES = (
    2.771807648699355, 3.314493155398122, 3.6331595749026278, 3.857655510378623, 4.030092053180576, 4.169554155006547,
    4.286309409349043, 4.38650911549537, 4.474124221725907, 4.551863584065974, 4.621655471868518, 4.684919847313499,
    4.7427317076846975, 4.795923860431186, 4.845154183957343, 4.890951125576789, 4.933745358126922, 4.973892348748306,
    5.0116887941184425,
)  # fmt: skip
"""Of the studentized range of 2 to 20 normal variables, at 0.95. They are scipy's, which takes a second to import them."""


def complete_block(samples: Samples) -> tuple[list[str], list[Pair]]:
    """Methods, and pairs with trials that all of them have: methods with many gaps go first, while that keeps more cells."""
    filled = dict(zip(samples.methods, samples.measured.sum(axis=0).tolist(), strict=True))
    best: tuple[list[str], list[Pair]] = ([], [])
    for least in sorted(set(filled.values()) - {0}):
        methods = [method for method in samples.methods if filled[method] >= least]
        pairs = [pair for pair in samples.pairs if len(samples.common(methods, pair))]
        if len(methods) > 1 and len(methods) * len(pairs) > len(best[0]) * len(best[1]):
            best = (methods, pairs)
    return best


def _friedman(table: Sequence[Sequence[float]]) -> float | None:
    """χ² of the ranks of k methods (inner) in N pairs (outer), corrected for ties; None where all ranks are equal."""
    n, k = len(table), len(table[0])
    middle = (k + 1) / 2
    between = n * sum((sum(line[at] for line in table) / n - middle) ** 2 for at in range(k))
    within = sum((rank - middle) ** 2 for line in table for rank in line) / (n * (k - 1))
    return between / within if within else None


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Samples:
    """The measured accuracies (%) of one table: ``values`` [pairs, trials, methods], NaN where there is none.

    Trials of a number are paired, unless ``weights``, of the same shape, says that they learned from different weights of
    the teacher: it numbers these, and is NaN where they are not known.
    """

    methods: list[str]
    pairs: list[Pair]
    values: Array
    weights: Array

    @classmethod
    def of_runs(cls, runs: pd.DataFrame) -> Samples:
        """The accuracies of the runs of one table."""
        trial, trials = pd.factorize(runs["trial"], sort=True)
        method, methods = pd.factorize(runs["method"])
        pair, pairs = pd.factorize(pd.MultiIndex.from_frame(runs[["teacher", "student"]]))
        sha256, _ = pd.factorize(runs["teacher_sha256"])
        values, weights = np.full((2, len(pairs), len(trials), len(methods)), np.nan)
        done = runs["top1"].notna().to_numpy()
        at = pair[done], trial[done], method[done]
        values[at] = runs["top1"].to_numpy()[done]
        weights[at] = np.where(runs["teacher_sha256"] == "", np.nan, sha256)[done]
        return cls(list(methods), list(pairs), values, weights)

    @property
    def measured(self) -> Array:
        """Whether there is any accuracy of each pair (rows) and method."""
        return np.invert(np.isnan(self.values).all(axis=1))

    def common(self, methods: Sequence[str], pair: Pair) -> Array:
        """The accuracies [trials, methods] of the trials that all methods have of a pair, learned from the same teacher."""
        at = [self.methods.index(method) for method in methods]
        place = self.pairs.index(pair)
        values: Array = self.values[place][:, at]
        return values[~np.isnan(values).any(axis=1) & _one_teacher(self.weights[place][:, at])]

    def paired_means(self, methods: Sequence[str], pair: Pair) -> list[float]:
        """The methods' means over the trials that all of them have; [] where there is none."""
        shared = self.common(methods, pair)
        return [fmean(values) for values in shared.T.tolist()] if len(shared) else []

    def differences(self, method: str, other: str, pair: Pair) -> list[float]:
        """method − other in each trial that both have: the same batches and initial weights."""
        shared = self.common((method, other), pair)
        differences: list[float] = (shared[:, 0] - shared[:, 1]).tolist()
        return differences

    def shared_means(self, pair: Pair) -> dict[str, float]:
        """The mean of each method over the trials shared by all methods with at least two; the others are left out."""
        place = self.pairs.index(pair)
        means = shared_means(self.values[place], _one_teacher(self.weights[place]))
        return {method: mean for method, mean in zip(self.methods, means, strict=True) if mean is not None}


def _one_teacher(weights: Array) -> Array:
    """Whether the known weights of each trial's teachers are the same."""
    known = ~np.isnan(weights)
    lowest: Array = weights.min(axis=1, where=known, initial=np.inf)
    highest: Array = weights.max(axis=1, where=known, initial=-np.inf)
    return lowest >= highest


def shared_means(values: Array, usable: Array | None = None) -> list[float | None]:
    """The mean of each cell of ``values`` [trials, cells] over the usable trials that all cells with two or more share.

    None for a cell of one trial, and for all where fewer than two cells or trials are left: one trial makes nothing the best.
    """
    several = (~np.isnan(values)).sum(axis=0) > 1
    shared = ~np.isnan(values[:, several]).any(axis=1)
    trials = values[shared if usable is None else shared & usable]
    if several.sum() < 2 or len(trials) < 2:
        return [None] * values.shape[1]
    return [fmean(cell) if known else None for cell, known in zip(trials.T.tolist(), several, strict=True)]
