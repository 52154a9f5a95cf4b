"""The tables of statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kdbench.reporting.captions import trials_text
from kdbench.reporting.keys import pair_text, titles
from kdbench.reporting.paired_tests import ALPHA, Difference
from kdbench.reporting.rendered import Emphasis, RenderedTable, Row, Section, TableCell
from kdbench.reporting.statistics import Improvement, Overall, Sensitivity, Statistics


def all_statistics_tables(statistics: Sequence[Statistics]) -> list[RenderedTable]:
    """The tables of all groups of runs."""
    names = titles(each.group for each in statistics)
    return [table for each in statistics for table in statistics_tables(each, names[each.group])]


def statistics_tables(found: Statistics, title: str) -> list[RenderedTable]:
    """A table for single pairs, and one over all of them where there are several. Significant differences are bold."""
    if found.baseline is None or not found.comparisons:
        why = "the baseline is not in this table" if found.baseline is None else "no other method has been measured"
        lines = ((TableCell(f"nothing is compared: {why}"),),)
        return [RenderedTable(f"{title}, statistics", (Section(((TableCell("statistics"),),), (lines,)),))]
    tables = [_each_pair(found, title)]
    return [*tables, _all_pairs(found, title)] if len(found.sensitivity) > 1 else tables


def p_text(p: float | None) -> str:
    """``p 0.021``, ``p < 0.001``; empty for none."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _each_pair(found: Statistics, title: str) -> RenderedTable:
    pairs = [each.pair for each in found.sensitivity]
    cells = {(each.method, each.pair): each for each in found.comparisons}
    lines = []
    for method in dict.fromkeys(each.method for each in found.comparisons):
        line = [TableCell(method)]
        for pair in pairs:
            each = cells.get((method, pair))
            text = _difference_text(each.difference, each.corrected) if each else ""
            line.append(TableCell(text, _mark(each.corrected if each else None)))
        lines.append(tuple(line))
    parts = (tuple(lines), _detectable(found)) if found.tests else (tuple(lines),)
    header = (TableCell("method"), *(TableCell(pair_text(pair)) for pair in pairs))
    return RenderedTable(
        f"{title}, against {found.baseline} on each pair",
        (Section((header,), parts),),
        caption=_pair_caption(found),
        notes=_reasons(each.difference for each in found.comparisons),
    )


def _detectable(found: Statistics) -> tuple[Row, ...]:
    """The differences that the trials of each pair detect: in one test alone, and after Holm's correction for all."""
    alone = (TableCell("(detectable by one test)"), *(TableCell(_sensitivity_text(each)) for each in found.sensitivity))
    if found.tests < 2:
        return (alone,)
    corrected = (TableCell("" if each.corrected is None else f"{each.corrected:.2f}") for each in found.sensitivity)
    return (alone, (TableCell(f"(detectable at Holm’s first of {found.tests})"), *corrected))


def _all_pairs(found: Statistics, title: str) -> RenderedTable:
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
    lines: list[Row] = [tuple(map(TableCell, [base, _number(ranking.ranks.get(base)), *[""] * 5]))]
    lines += [_overall_line(each, ranking.ranks.get(each.method)) for each in found.overall]
    keep = [at for at in range(len(header)) if any(line[at].text for line in lines)]
    captions = [_ranking_caption(found), _difference_caption(found)]
    if 5 in keep or 6 in keep:
        captions.append(_improvement_caption(found))
    return RenderedTable(
        f"{title}, over {len(found.sensitivity)} pairs",
        (
            Section(
                (tuple(TableCell(header[at]) for at in keep),),
                (tuple(tuple(line[at] for at in keep) for line in lines),),
            ),
        ),
        caption=" ".join(captions),
        notes=_reasons(each.difference for each in found.overall),
    )


def _overall_line(each: Overall, rank: float | None) -> Row:
    difference = each.difference
    return (
        TableCell(each.method),
        TableCell(_number(rank)),
        TableCell("" if difference.mean is None else f"{difference.mean:+.2f} ({difference.n})"),
        TableCell(f"{each.won} : {each.lost}"),
        TableCell(p_text(each.corrected), _mark(each.corrected)),
        TableCell(_improvement_text(each.over_baseline)),
        TableCell(_improvement_text(each.of_first)),
    )


def _ranking_caption(found: Statistics) -> str:
    ranking = found.ranking
    text = f"Mean rank: over {ranking.pairs} pairs and {len(ranking.ranks)} methods without a gap, 1 is best"
    if ranking.pairs:
        text += f"; of each pair the {trials_text(ranking.trials)} that all these methods have"
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


def _mark(p: float | None) -> Emphasis:
    return Emphasis.significant if p is not None and p < ALPHA else Emphasis.none


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
