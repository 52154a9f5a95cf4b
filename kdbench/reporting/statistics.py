"""Statistics over trials: which methods differ, and what n trials can detect. Mean and deviation: ``cells``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from kdbench.catalogue.text import nearest
from kdbench.errors import BadInput
from kdbench.reporting.keys import Group, Pair
from kdbench.reporting.paired_tests import (
    ALPHA,
    Difference,
    Ranking,
    Samples,
    detectable,
    holm,
    paired_t,
    pooled_sd,
    rank_methods,
    relative_improvement,
    wilcoxon,
)


PLAIN = "ce"


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline on one pair: a paired t-test over trials. ``corrected`` is p after Holm."""

    method: str
    pair: Pair
    difference: Difference
    corrected: float | None


@dataclass(frozen=True)
class Improvement:
    """The average relative improvement in % over ``n`` pairs.

    ``undefined`` counts the pairs where the reference does not beat ce; ``least`` is the smallest denominator, in points.
    """

    percent: float | None
    n: int
    undefined: int
    least: float | None = None


@dataclass(frozen=True)
class Overall:
    """A method against the baseline over all pairs that have both: Wilcoxon's test on the mean differences.

    ``won`` and ``lost`` count pairs by the sign of the mean difference. ``over_baseline`` is the method's average relative
    improvement over the baseline, ``of_first`` that of the first-ranked method over this one.
    """

    method: str
    difference: Difference
    corrected: float | None
    won: int
    lost: int
    over_baseline: Improvement
    of_first: Improvement


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a pair's trials: the pooled sd of paired differences, and the difference that it lets detect.

    ``detectable`` is that of one test alone, ``corrected`` that of Holm's first step over all comparisons of the table.
    """

    pair: Pair
    trials: int
    sd: float | None
    detectable: float | None
    corrected: float | None


@dataclass(frozen=True)
class Statistics:
    """All of one table. ``baseline`` is None if the requested one is not in this table: then nothing is compared."""

    group: Group
    baseline: str | None
    comparisons: list[Comparison]
    overall: list[Overall]
    sensitivity: list[Sensitivity]
    ranking: Ranking
    first: str | None

    @property
    def tests(self) -> int:
        """How many comparisons on single pairs were made: what Holm's correction counts."""
        return _tests(self.comparisons)


def compute(samples: Samples, group: Group, baseline: str | None = None) -> Statistics:
    """The statistics of one table. Without a baseline's name: kd, else ce, else the first method."""
    base = baseline or next((name for name in ("kd", PLAIN) if name in samples.methods), samples.methods[0])
    ranking = rank_methods(samples)
    first = min(ranking.ranks, key=lambda method: ranking.ranks[method]) if ranking.ranks else None
    found = base if base in samples.methods else None
    comparisons = _compare_trials(samples, found) if found else []
    return Statistics(
        group=group,
        baseline=found,
        comparisons=comparisons,
        overall=_compare_pairs(samples, found, first) if found else [],
        sensitivity=[_sensitivity(samples, found, pair, _tests(comparisons)) for pair in samples.pairs]
        if found
        else [],
        ranking=ranking,
        first=first,
    )


def compute_all(samples: dict[Group, Samples], baseline: str | None = None) -> list[Statistics]:
    """The statistics of all tables, in their order. Raises BadInput for a baseline that none of them has."""
    methods = sorted({method for each in samples.values() for method in each.methods})
    if baseline is not None and methods and baseline not in methods:
        near = nearest(baseline, methods)
        hint = f"Did you mean '{near}'?" if near else f"There are {', '.join(methods)}."
        raise BadInput(f"--baseline {baseline}: no table has the method '{baseline}'. {hint}")
    return [compute(each, group, baseline) for group, each in samples.items()]


def not_separable(samples: Samples, pair: Pair) -> set[str]:
    """The best method of a pair, and all that a paired t-test does not tell from it (α = 0.05, Holm over the pair).

    The best is so over the trials that all methods with two or more share; without two such methods and trials nothing
    stands out. A method that differs from the best by the same in each trial is not tested, and not in the set.
    """
    means = {method: round(mean, 9) for method, mean in samples.shared_means(pair).items()}
    if not means:
        return set()
    best = max(means, key=lambda method: means[method])
    others = [method for method in means if method != best]
    ps = holm([paired_t(samples.differences(best, method, pair)).p for method in others])
    tied = {method for method in others if means[method] == means[best]}
    return {best, *tied, *(method for method, p in zip(others, ps, strict=True) if p is not None and p >= ALPHA)}


def _tests(comparisons: Sequence[Comparison]) -> int:
    return sum(each.difference.p is not None for each in comparisons)


def _compare_trials(samples: Samples, baseline: str) -> list[Comparison]:
    measured = samples.measured.T.tolist()
    places = [
        (method, pair)
        for method, by_pair in zip(samples.methods, measured, strict=True)
        for pair, any_trial in zip(samples.pairs, by_pair, strict=True)
        if method != baseline and any_trial
    ]
    found = [paired_t(samples.differences(method, baseline, pair)) for method, pair in places]
    corrected = holm([each.p for each in found])
    return [Comparison(*place, each, p) for place, each, p in zip(places, found, corrected, strict=True)]


def _compare_pairs(samples: Samples, baseline: str, first: str | None) -> list[Overall]:
    methods = [method for method in samples.methods if method != baseline]
    means = {method: _mean_differences(samples, method, baseline) for method in methods}
    found = [wilcoxon(means[method]) for method in methods]
    return [
        Overall(
            method=method,
            difference=difference,
            corrected=p,
            won=sum(round(value, 9) > 0 for value in means[method]),
            lost=sum(round(value, 9) < 0 for value in means[method]),
            over_baseline=improvement(samples, method, baseline),
            of_first=improvement(samples, first or method, method),
        )
        for method, difference, p in zip(methods, found, holm([each.p for each in found]), strict=True)
    ]


def improvement(samples: Samples, target: str, other: str) -> Improvement:
    """The average relative improvement of one method over another, over pairs with trials that both and `ce` have."""
    if target == other or PLAIN in (target, other) or PLAIN not in samples.methods:
        return Improvement(None, 0, 0)
    means = [samples.paired_means((target, other, PLAIN), pair) for pair in samples.pairs]
    return average_improvement([(found[0], found[1], found[2]) for found in means if found])


def average_improvement(triples: Sequence[tuple[float, float, float]]) -> Improvement:
    """ARI over (target, other, plain) accuracies of several pairs."""
    found = [relative_improvement(*triple) for triple in triples]
    defined = [value for value in found if value is not None]
    undefined = len(found) - len(defined)
    if not defined:
        return Improvement(None, 0, undefined)
    gains = [other - plain for value, (_, other, plain) in zip(found, triples, strict=True) if value is not None]
    return Improvement(fmean(defined), len(defined), undefined, min(gains))


def _mean_differences(samples: Samples, method: str, other: str) -> list[float]:
    """The mean paired difference of each pair of networks that has both methods."""
    found: Sequence[list[float]] = [samples.differences(method, other, pair) for pair in samples.pairs]
    return [fmean(values) for values in found if values]


def _sensitivity(samples: Samples, baseline: str, pair: Pair, tests: int) -> Sensitivity:
    groups = [samples.differences(method, baseline, pair) for method in samples.methods if method != baseline]
    trials = max((len(group) for group in groups), default=0)
    sd = pooled_sd(groups)
    return Sensitivity(pair, trials, sd, detectable(sd, trials), detectable(sd, trials, tests))
