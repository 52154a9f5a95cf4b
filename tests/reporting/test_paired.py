"""Paired tests and what they can detect, against values by hand, by enumeration and by scipy."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from kdbench.reporting.paired_tests import Difference, detectable, effect, holm, paired_t, pooled_sd, wilcoxon


def test_paired_t_by_hand():
    found = paired_t([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.p == pytest.approx(0.0741799)  # t = 2 √3 = 3.4641 with two degrees of freedom


def test_paired_t_is_scipys():
    random = np.random.default_rng(0)
    for n in (2, 3, 4, 10):
        ours, theirs = random.normal(70, 1, n), random.normal(70.5, 1, n)
        assert paired_t(list(ours - theirs)).p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], Difference(0, why="too few trials")),
        ([1.5], Difference(1, 1.5, why="too few trials")),
        ([0.0, 0.0, 0.0], Difference(3, 0.0, 0.0, 1.0)),
        ([2.0, 2.0], Difference(2, 2.0, 0.0, why="no variation")),
    ],
)
def test_paired_t_without_a_test(differences, expected):
    assert paired_t(differences) == expected


def test_a_difference_that_only_rounding_varies_has_no_variation():
    assert paired_t([70.3 - 69.3, 71.1 - 70.1, 0.1 + 0.9]).why == "no variation"


def test_wilcoxon_by_hand():
    # ranks 1 … 6, the third negative: R- = 3, reached by {}, {1}, {2}, {3}, {1, 2}: p = 2 · 5 / 2^6
    assert wilcoxon([0.1, 0.2, -0.3, 0.4, 0.5, 0.6]).p == 10 / 64


def test_wilcoxon_is_scipys():
    random = np.random.default_rng(1)
    for n in (6, 9, 12, 30):
        values = random.normal(0.3, 1, n)
        assert wilcoxon(list(values)).p == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=1e-9)


def test_wilcoxon_with_ties_and_zeros_by_enumeration():
    values = [1.0, 1.0, -1.0, 2.0, 2.0, 3.0, 0.0, -0.5]
    ranks = np.array([3.0, 3.0, 3.0, 5.5, 5.5, 7.0, 1.0])
    sums = [float(ranks[np.array(signs)].sum()) for signs in product((False, True), repeat=7)]
    smaller = min(3.0 + 1.0, ranks.sum() - 4.0)
    found = wilcoxon(values)
    assert found.n == 8
    assert found.p == pytest.approx(2 * sum(each <= smaller for each in sums) / 2**7)


def test_wilcoxon_needs_six_pairs():
    found = wilcoxon([1.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean, found.p, found.why) == (5, 2.2, None, "too few pairs")
    assert wilcoxon([1.0, 0.0, 2.0, 3.0, 4.0, 5.0]).why == "too few pairs"
    assert wilcoxon([0.0] * 6) == Difference(6, 0.0, 0.0, 1.0)
    assert wilcoxon([]) == Difference(0, why="too few pairs")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.5, 0.9]) == [0.03, None, 1.0, 1.0]
    assert holm([]) == []


def test_pooled_sd_weighs_by_degrees_of_freedom():
    # variances 1 (two degrees) and 8 (one): (2 · 1 + 8) / 3
    assert pooled_sd([[1.0, 2.0, 3.0], [0.0, 4.0], [7.0]]) == pytest.approx(math.sqrt(10 / 3))
    assert pooled_sd([[1.0], []]) is None


@pytest.mark.parametrize("tests", [1, 12])
@pytest.mark.parametrize("trials", [3, 4, 5, 10, 34])
def test_detectable_effect_has_power_080_by_scipys_noncentral_t(trials, tests):
    alpha = 0.05 / tests
    limit, shift = stats.t.ppf(1 - alpha / 2, trials - 1), effect(trials, alpha) * math.sqrt(trials)
    power = stats.nct.sf(limit, trials - 1, shift) + stats.nct.cdf(-limit, trials - 1, shift)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_detectable_effect_of_two_trials_by_simulation():
    samples = np.random.default_rng(2).normal(effect(2), 1, (200_000, 2))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(2))
    assert (abs(t) > stats.t.ppf(0.975, 1)).mean() == pytest.approx(0.8, abs=0.005)


def test_detectable():
    assert detectable(2.0, 3) == pytest.approx(2 * 3.264, abs=1e-3)
    assert detectable(2.0, 3, 12) == pytest.approx(2 * effect(3, 0.05 / 12))
    assert detectable(1.0, 2, 200) > 1_000
    assert [detectable(None, 3), detectable(1.0, 1), detectable(0.0, 3)] == [None, None, None]
