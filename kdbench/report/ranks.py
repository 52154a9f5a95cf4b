"""Ranks of methods over pairs: Friedman's test and Nemenyi's critical difference (Demšar, JMLR 7, 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from kdbench.report.keys import Pair
from kdbench.report.samples import Samples


@dataclass(frozen=True)
class Ranking:
    """Mean rank of each method over the pairs where all of them are measured; 1 is best.

    Only the trials count that all of them have: ``trials`` are the fewest and the most in a pair.
    Two methods differ (α = 0.05) where their mean ranks lie at least ``critical_difference`` apart. ``left_out`` counts the
    methods and pairs of the table that are not in it, for want of a cell. ``why`` says why there is no test.
    """

    ranks: dict[str, float]
    pairs: int
    trials: tuple[int, int] = (0, 0)
    chi_square: float | None = None
    p: float | None = None
    critical_difference: float | None = None
    left_out: tuple[int, int] = (0, 0)
    why: str = ""


def rank_methods(samples: Samples) -> Ranking:
    """Rank the methods by their means over common trials within each pair, and average.

    Friedman's χ² is corrected for ties. It is used as it is, though Iman and Davenport's F is stronger: with two or three
    pairs that agree F is infinite, while the exact p may be 0.17.
    """
    methods, pairs = complete_block(samples)
    left_out = (len(samples.methods) - len(methods), len(samples.pairs) - len(pairs))
    table = [average_ranks([round(mean, 9) for mean in samples.paired_means(methods, pair)]) for pair in pairs]
    counts = [len(samples.common(methods, pair)) for pair in pairs] or [0]
    ranks = {method: math.fsum(line[at] for line in table) / len(pairs) for at, method in enumerate(methods)}
    found = Ranking(ranks, len(pairs), (min(counts), max(counts)), left_out=left_out)
    if len(pairs) < 2:
        return replace(found, why="too few pairs")
    if len(methods) < 3:
        return replace(found, why="two methods: Wilcoxon's test compares them")
    chi_square = _friedman(table)
    if chi_square is None:
        return replace(found, why="all methods tie everywhere")
    from scipy.special import chdtrc  # type: ignore[import-untyped]

    p = float(chdtrc(len(methods) - 1, chi_square))
    return replace(found, chi_square=chi_square, p=p, critical_difference=critical_difference(len(methods), len(pairs)))


def average_ranks(values: Sequence[float]) -> list[float]:
    """Ranks by descending value, 1 first; ties share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end
    return ranks


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
    filled = {m: {p for p in samples.pairs if samples.of(m, p)} for m in samples.methods}
    best: tuple[list[str], list[Pair]] = ([], [])
    for least in sorted({len(pairs) for pairs in filled.values()} - {0}):
        methods = [method for method in samples.methods if len(filled[method]) >= least]
        pairs = [pair for pair in samples.pairs if samples.common(methods, pair)]
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
