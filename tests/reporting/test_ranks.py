"""Ranks over pairs and relative improvement, against values by hand, scipy and the literature."""

from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from kdbench.reporting.keys import reference
from kdbench.reporting.paired_tests import (
    Samples,
    complete_block,
    critical_difference,
    rank_methods,
    relative_improvement,
)
from kdbench.reporting.statistics import Improvement, average_improvement


def samples(table):
    """Samples of one trial from {method: [value or None for each pair]}."""
    width = max(len(values) for values in table.values())
    lists = [[*values, *[None] * (width - len(values))] for values in table.values()]
    values = np.array(lists, dtype=float).T[:, np.newaxis]  # pairs, the trial, methods
    return Samples(list(table), [("t", f"s{at}") for at in range(width)], values, np.full_like(values, np.nan))


def test_ranks_share_ties():
    table = samples({"a": [70.0], "b": [72.0], "c": [70.0], "d": [71.0]})
    assert rank_methods(table).ranks == {"a": 3.5, "b": 1.0, "c": 3.5, "d": 2.0}


@pytest.mark.parametrize("digits", [0, 3])
def test_friedman_is_scipys(digits):
    values = np.random.default_rng(3).normal(70, 1, (12, 5)).round(digits)  # whole numbers: many ties
    found = rank_methods(samples({f"m{at}": list(values[:, at]) for at in range(5)}))
    theirs = stats.friedmanchisquare(*values.T)
    assert found.chi_square == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    assert list(found.ranks.values()) == pytest.approx(stats.rankdata(-values, axis=1).mean(0))


def test_critical_differences_of_demsar():
    quantiles = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 10: 3.164}  # JMLR 7, 2006, Table 5a
    for methods, quantile in quantiles.items():
        expected = quantile * (methods * (methods + 1) / (6 * 14)) ** 0.5
        assert critical_difference(methods, 14) == pytest.approx(expected, rel=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)  # his worked example


@pytest.mark.parametrize("methods", [2, 3, 12, 20, 21, 25])
def test_critical_differences_are_scipys(methods):
    quantile = stats.studentized_range.ppf(0.95, methods, np.inf)
    assert critical_difference(methods, 1) == pytest.approx(quantile * (methods * (methods + 1) / 12) ** 0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("table", "why", "ranks"),
    [
        ({"a": [1, 2], "b": [2, 3]}, "two methods: Wilcoxon's test compares them", {"a": 2.0, "b": 1.0}),
        ({"a": [1], "b": [2], "c": [3]}, "too few pairs", {"a": 3.0, "b": 2.0, "c": 1.0}),
        ({"a": [1, 1], "b": [1, 1], "c": [1, 1]}, "all methods tie everywhere", {"a": 2.0, "b": 2.0, "c": 2.0}),
        ({"a": [None, 1], "b": [2, None]}, "too few pairs", {}),
        ({"a": [1, 2]}, "too few pairs", {}),
    ],
)
def test_ranks_without_a_test(table, why, ranks):
    found = rank_methods(samples(table))
    assert (found.why, found.ranks, found.p, found.critical_difference) == (why, ranks, None, None)


def test_what_has_gaps_is_left_out():
    table = {"a": [1, 2, 3], "b": [2, 3, 4], "c": [3, 4, None], "late": [9, None, None]}
    methods, pairs = complete_block(samples(table))
    assert (methods, pairs) == (["a", "b", "c"], [("t", "s0"), ("t", "s1")])
    assert rank_methods(samples(table)).left_out == (1, 1)


def test_relative_improvement_by_hand():
    assert relative_improvement(75.0, 74.0, 72.0) == 50.0
    assert relative_improvement(73.0, 74.0, 72.0) == -50.0
    assert relative_improvement(75.0, 72.0, 72.0) is None
    assert relative_improvement(75.0, 71.0, 72.0) is None
    assert average_improvement([(75.0, 74.0, 72.0), (76.0, 74.0, 72.0), (76.0, 70.0, 72.0)]) == Improvement(
        75.0, 2, 1, 2.0
    )
    assert average_improvement([]) == Improvement(None, 0, 0)


def test_semckds_tables_give_its_average_relative_improvement():
    """The paper says 60.03 %; its printed cells give 58.64 % pooled, 59.07 % as the mean over methods."""
    cells = {
        (r["table"], r["method"], r["teacher"], r["student"]): float(r["value"])
        for r in reference().to_dict("records")
        if r["paper"] == "semckd" and r["table"] in ("2", "3") and r["value"]
    }
    pairs = {(table, teacher, student) for table, _, teacher, student in cells}
    triples = {
        method: [
            (cells[table, "semckd", *pair], cells[table, method, *pair], cells[table, "student", *pair])
            for table, *pair in pairs
            if (table, method, *pair) in cells
        ]
        for method in ("fitnet", "at", "sp", "vid", "hkd", "mgd")
    }
    pooled = average_improvement([triple for each in triples.values() for triple in each])
    assert (pooled.n, pooled.undefined) == (70, 0)
    assert pooled.percent == pytest.approx(58.64, abs=5e-3)
    by_method = {method: average_improvement(each).percent for method, each in triples.items()}
    assert fmean(by_method.values()) == pytest.approx(59.07, abs=5e-3)
    assert by_method["hkd"] == pytest.approx(45.33, abs=5e-3)
