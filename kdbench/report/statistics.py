"""Statistics over trials: what differs, what n trials can detect, and the tables that say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from kdbench.catalogue.text import nearest
from kdbench.errors import BadInput
from kdbench.report.paired_tests import (
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
from kdbench.report.published import Group, Pair, pair_text
from kdbench.report.sheet import Band, Entry, Line, Mark, Sheet


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
    """The average relative improvement in % over ``n`` pairs; ``undefined`` pairs had nothing to relate it to.

    ``least`` is the smallest gain (percentage points) that it is related to: the ratio of a tiny one says little.
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
    """What the trials of a pair can show: the pooled sd of paired differences, and the difference it lets detect.

    ``detectable`` is that of one test alone, ``corrected`` that of Holm's first step over all comparisons of the table.
    """

    pair: Pair
    trials: int
    sd: float | None
    detectable: float | None
    corrected: float | None


@dataclass(frozen=True)
class Statistics:
    """All of one table. ``baseline`` is None where the table has not the wanted one: then nothing is compared."""

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
    places = [
        (method, pair)
        for method in samples.methods
        for pair in samples.pairs
        if method != baseline and samples.of(method, pair)
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
    if target == other or PLAIN in (target, other):
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


def statistics_sheets(found: Statistics, title: str) -> list[Sheet]:
    """A sheet for single pairs, and one for all of them where there are several. What is significant is marked."""
    if found.baseline is None or not found.comparisons:
        why = "the baseline is not in this table" if found.baseline is None else "no other method has been measured"
        lines = ((Entry(f"nothing is compared: {why}"),),)
        return [Sheet(f"{title}, statistics", (Band(((Entry("statistics"),),), (lines,)),))]
    sheets = [_each_pair(found, title)]
    return [*sheets, _all_pairs(found, title)] if len(found.sensitivity) > 1 else sheets


def p_text(p: float | None) -> str:
    """``p 0.021``, ``p < 0.001``; empty for none."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _each_pair(found: Statistics, title: str) -> Sheet:
    pairs = [each.pair for each in found.sensitivity]
    cells = {(each.method, each.pair): each for each in found.comparisons}
    lines = []
    for method in dict.fromkeys(each.method for each in found.comparisons):
        line = [Entry(method)]
        for pair in pairs:
            each = cells.get((method, pair))
            text = _difference_text(each.difference, each.corrected) if each else ""
            line.append(Entry(text, _mark(each.corrected if each else None)))
        lines.append(tuple(line))
    parts = (tuple(lines), _detectable(found)) if found.tests else (tuple(lines),)
    header = (Entry("method"), *(Entry(pair_text(pair)) for pair in pairs))
    return Sheet(
        f"{title}, against {found.baseline} on each pair",
        (Band((header,), parts),),
        caption=_pair_caption(found),
        notes=_reasons(each.difference for each in found.comparisons),
    )


def _detectable(found: Statistics) -> tuple[Line, ...]:
    """What differences the trials of each pair detect: in one test alone, and after Holm's correction for all."""
    alone = (Entry("(detectable by one test)"), *(Entry(_sensitivity_text(each)) for each in found.sensitivity))
    if found.tests < 2:
        return (alone,)
    corrected = (Entry("" if each.corrected is None else f"{each.corrected:.2f}") for each in found.sensitivity)
    return (alone, (Entry(f"(detectable at Holm’s first of {found.tests})"), *corrected))


def _all_pairs(found: Statistics, title: str) -> Sheet:
    ranking, base, first = found.ranking, found.baseline or "", found.first
    header = [
        "method",
        "mean rank",
        f"− {base}",
        "won : lost",
        "Wilcoxon",
        f"ARI over {base}",
        f"ARI of {first} over it",
    ]
    lines: list[Line] = [tuple(map(Entry, [base, _number(ranking.ranks.get(base)), *[""] * 5]))]
    lines += [_overall_line(each, ranking.ranks.get(each.method)) for each in found.overall]
    keep = [at for at in range(len(header)) if any(line[at].text for line in lines)]
    captions = [_ranking_caption(found), _difference_caption(found)]
    if 5 in keep or 6 in keep:
        captions.append(_improvement_caption(found))
    return Sheet(
        f"{title}, over {len(found.sensitivity)} pairs",
        (Band((tuple(Entry(header[at]) for at in keep),), (tuple(tuple(line[at] for at in keep) for line in lines),)),),
        caption=" ".join(captions),
        notes=_reasons(each.difference for each in found.overall),
    )


def _overall_line(each: Overall, rank: float | None) -> Line:
    difference = each.difference
    return (
        Entry(each.method),
        Entry(_number(rank)),
        Entry("" if difference.mean is None else f"{difference.mean:+.2f} ({difference.n})"),
        Entry(f"{each.won} : {each.lost}"),
        Entry(p_text(each.corrected), _mark(each.corrected)),
        Entry(_improvement_text(each.over_baseline)),
        Entry(_improvement_text(each.of_first)),
    )


def _ranking_caption(found: Statistics) -> str:
    ranking = found.ranking
    text = f"Mean rank: over {ranking.pairs} pairs and {len(ranking.ranks)} methods without a gap, 1 is best"
    if ranking.pairs:
        text += f"; of each pair the {_from_to(ranking.trials)} that all these methods have"
    if any(ranking.left_out):
        methods, pairs = ranking.left_out
        text += f" ({methods} methods and {pairs} pairs have gaps and are left out)"
    if ranking.chi_square is None or ranking.p is None or ranking.critical_difference is None:
        return f"{text}; no Friedman test: {ranking.why}."
    return (
        f"{text}; Friedman's χ² = {ranking.chi_square:.2f}, {p_text(ranking.p)}; Nemenyi's critical difference "
        f"{ranking.critical_difference:.2f} (α = 0.05)."
    )


def _pair_caption(found: Statistics) -> str:
    text = f"Mean difference to {found.baseline} in percentage points ± sd of the paired differences (trials)"
    if not found.tests:
        return f"{text}."
    text += f"; p of a paired t-test, two-sided, Holm-corrected over {found.tests} comparisons, marked below {ALPHA}. "
    text += (
        "Detectable by one test: the true difference that it finds in 80 % of cases at α = 0.05, uncorrected, from the "
        "pooled sd of the paired differences."
    )
    if found.tests < 2:
        return text
    return (
        f"{text} Detectable at Holm’s first: the same at α = 0.05 / {found.tests}, which the smallest p of the table must "
        "pass before anything is marked."
    )


def _difference_caption(found: Statistics) -> str:
    tests = sum(each.difference.p is not None for each in found.overall)
    text = f"− {found.baseline}: mean over the pairs that have both, in percentage points (pairs)"
    if not tests:
        return f"{text}."
    return (
        f"{text}. Wilcoxon's signed-rank test, two-sided, exact, Holm-corrected over {tests} comparisons. Pairs that share a "
        "teacher or a student are not independent: p is then too small."
    )


def _improvement_caption(found: Statistics) -> str:
    skipped = max(max(each.over_baseline.undefined, each.of_first.undefined) for each in found.overall)
    gains = [
        gain for each in found.overall for gain in (each.over_baseline.least, each.of_first.least) if gain is not None
    ]
    text = "ARI: average relative improvement, (a − b) / (b − ce) in % (SemCKD, eq. 17), over the trials that all three have"
    text += f", and pairs where b is above ce (up to {skipped} are not)" if skipped else ""
    least = f" The smallest b − ce is {min(gains):.2f} points." if gains else ""
    return f"{text}; in brackets the number of pairs.{least}"


def _mark(p: float | None) -> Mark:
    return Mark.significant if p is not None and p < ALPHA else Mark.none


def _difference_text(difference: Difference, corrected: float | None) -> str:
    if difference.mean is None:
        return "–"
    sd = "" if difference.sd is None else f" ± {difference.sd:.2f}"
    p = f", {p_text(corrected)}" if corrected is not None else ""
    return f"{difference.mean:+.2f}{sd} ({difference.n}){p}"


def _sensitivity_text(each: Sensitivity) -> str:
    if each.detectable is None:
        return "too few trials" if each.sd is None else "no variation"
    return f"{each.detectable:.2f} (n = {each.trials}, sd {each.sd:.2f})"


def _improvement_text(each: Improvement) -> str:
    return "" if each.percent is None else f"{each.percent:.1f} % ({each.n})"


def _from_to(counts: tuple[int, int]) -> str:
    """``3 trials``, ``2-3 trials``."""
    least, most = counts
    number = f"{least}" if least == most else f"{least}-{most}"
    return f"{number} {'trial' if most == 1 else 'trials'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _reasons(differences: Iterable[Difference]) -> tuple[str, ...]:
    counts = Counter(each.why for each in differences if each.why)
    return tuple(f"{count} without a test: {_EXPLAINED[why]}." for why, count in counts.items())


_EXPLAINED = {
    "too few trials": "too few trials (two that both methods have are needed)",
    "no variation": "the difference is the same in all trials",
    "too few pairs": "too few pairs (six with a difference are needed, or no p can fall below 0.05)",
}
