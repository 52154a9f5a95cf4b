"""The statistics of a table: who is compared with whom, over what, and what is said where it cannot be."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

from kdbench.errors import BadInput
from kdbench.reporting.csv_json import json_text
from kdbench.reporting.observations import run_frame
from kdbench.reporting.paired_tests import effect, holm, paired_t
from kdbench.reporting.rendered import Emphasis
from kdbench.reporting.report import Report
from kdbench.reporting.statistics import Improvement, compute, compute_all, not_separable
from kdbench.reporting.statistics_tables import p_text, statistics_tables
from kdbench.reporting.tables import grid_tables


KEY = ("s", "crd", "cifar100", "", "pretrained")
PAIR = ("resnet32x4", "resnet8x4")


def samples_by_table(runs):
    return {table.group: table.samples for table in grid_tables(runs)}


@pytest.fixture
def rows(row):
    """Rows from {method: [accuracy for each trial]}, on one pair or on the students given."""

    def make(table, students=("resnet8x4",), **changes):
        return run_frame(
            [
                row(trial, value, method=method, student=student, **changes)
                for method, values in table.items()
                for student in students
                for trial, value in enumerate(values)
            ]
        )

    return make


CLEAR = {"ce": [70.0, 70.5, 70.2], "kd": [73.0, 73.6, 73.1], "at": [70.1, 70.4, 70.3]}


def test_comparisons_are_paired_by_trial(rows, row):
    found = rows(CLEAR).drop(index=1)  # ce lacks trial 1
    (statistics,) = compute_all(samples_by_table(found))
    ce, at = statistics.comparisons
    assert (ce.method, at.method, statistics.baseline) == ("ce", "at", "kd")
    assert ce.difference == paired_t([70.0 - 73.0, 70.2 - 73.1])
    assert at.difference == paired_t([70.1 - 73.0, 70.4 - 73.6, 70.3 - 73.1])
    assert [ce.corrected, at.corrected] == holm([ce.difference.p, at.difference.p])
    assert statistics.tests == 2


def test_the_baseline_is_kd_else_ce_else_the_first(rows):
    def baseline(*methods, wanted=None):
        return compute(samples_by_table(rows({method: [70.0] for method in methods}))[KEY], KEY, wanted).baseline

    assert baseline("at", "ce", "kd") == "kd"
    assert baseline("at", "ce") == "ce"
    assert baseline("at", "sp") == "at"
    assert baseline("at", "kd", wanted="at") == "at"
    assert baseline("at", "kd", wanted="sp") is None


def test_an_unknown_baseline_is_an_error_only_where_no_table_has_it(rows):
    samples = samples_by_table(pd.concat([rows(CLEAR), rows({"sp": [70.0]}, suite="t")]))
    with pytest.raises(BadInput, match=r"no table has the method 'kdd'\. Did you mean 'kd'\?"):
        compute_all(samples, "kdd")
    assert [each.baseline for each in compute_all(samples, "sp")] == [None, "sp"]


def test_over_pairs(rows):
    students = [f"s{at}" for at in range(6)]
    parts = []
    for at, student in enumerate(students):
        values = {"ce": [70.0, 71.0], "kd": [72.0, 73.0], "at": [73.0 + at, 74.0 + at]}
        parts.append(rows(values, [student]))
    (statistics,) = compute_all(samples_by_table(pd.concat(parts)))
    ce, at = statistics.overall
    assert (at.won, at.lost, at.difference.n, at.difference.mean) == (6, 0, 6, 3.5)
    assert at.difference.p == 2 / 64
    assert at.corrected == 4 / 64
    assert at.over_baseline.percent == pytest.approx(100 * 3.5 / 2)
    assert (ce.won, ce.lost) == (0, 6)
    assert (ce.over_baseline, at.of_first) == (Improvement(None, 0, 0), Improvement(None, 0, 0))
    assert statistics.first == "at"
    assert statistics.ranking.ranks == {"ce": 3.0, "kd": 2.0, "at": 1.0}
    each, overall = statistics_tables(statistics, "s")
    header, _, _, line = overall.lines
    assert [entry.text for entry in header] == ["method", "mean rank", "− kd", "won : lost", "Wilcoxon", "ARI over kd"]
    assert [entry.text for entry in line] == ["at", "1.00", "+3.50 (6)", "6 : 0", "p 0.062", "175.0 % (6)"]
    assert "Friedman's χ² = 12.00, p 0.002; Nemenyi's critical difference 1.35" in overall.caption
    assert "of each pair the 2 trials that all these methods have" in overall.caption
    assert "The smallest b − ce is 2.00 points." in overall.caption
    assert "Pairs that share a teacher or a student are not independent" in overall.caption
    assert each.width == 7


def test_pairs_count_as_won_and_lost_down_to_a_billionth_of_a_point_and_draws_as_neither(rows):
    values = {"won": 73.1, "lost": 72.9, "drawn": 73.0}
    found = [rows({"kd": [73.0], "at": [value]}, [student]) for student, value in values.items()]
    found.append(rows({"kd": [72.3 + 0.1], "at": [72.4]}, ["all but drawn"]))  # 0.1 + 72.3 is not quite 72.4
    found.append(rows({"kd": [73.0], "at": [73.0 - 6e-10]}, ["rounded to a billionth"]))
    (statistics,) = compute_all(samples_by_table(pd.concat(found)))
    (at,) = statistics.overall
    assert (at.won, at.lost, at.difference.n) == (1, 2, 5)


def test_the_json_of_statistics_names_methods_and_pairs(rows):
    report = Report([], rows(CLEAR))
    statistics = compute_all(samples_by_table(report.runs))
    (found,) = json.loads(json_text(report, 0.5, statistics))["statistics"]
    assert "statistics" not in json.loads(json_text(report, 0.5))
    (each,) = statistics
    assert (found["suite"], found["protocol"], found["baseline"], found["first"]) == ("s", "crd", "kd", "kd")
    ce, at = each.comparisons
    assert found["trials"] == [
        {"method": of.method, "teacher": PAIR[0], "student": PAIR[1], **asdict(of.difference), "p_holm": of.corrected}
        for of in (ce, at)
    ]
    assert [(line["method"], line["won"], line["lost"]) for line in found["pairs"]] == [("ce", 0, 1), ("at", 0, 1)]
    assert [(line["teacher"], line["student"], line["trials"]) for line in found["detectable"]] == [(*PAIR, 3)]


def test_ranks_and_improvements_are_over_common_trials(rows):
    """A method whose one trial is the easy one is no better for it."""
    table = {"ce": [70.0, 60.0], "kd": [72.0, 62.0], "at": [71.0, None]}
    (statistics,) = compute_all(samples_by_table(rows(table, ["a", "b"])))
    assert statistics.ranking.ranks == {"ce": 3.0, "kd": 1.0, "at": 2.0}
    assert statistics.ranking.trials == (1, 1)
    at = statistics.overall[1]
    assert (at.won, at.lost) == (0, 2)
    assert (at.over_baseline.percent, at.over_baseline.n, at.over_baseline.least) == (-50.0, 2, 2.0)


def test_pairs_without_a_common_trial_have_no_rank(rows):
    found = pd.concat(
        [rows({"ce": [70.0, None], "kd": [None, 71.0]}, ["a"]), rows({"ce": [70.0], "kd": [71.0]}, ["b"])]
    )
    (statistics,) = compute_all(samples_by_table(found))
    assert (statistics.ranking.pairs, statistics.ranking.left_out) == (1, (0, 1))


def test_what_is_not_separable_from_the_best(rows):
    methods = {"best": [75.0, 75.5, 76.0], "near": [74.9, 75.6, 75.8], "far": [60.0, 60.4, 61.1], "once": [50.0]}
    samples = samples_by_table(rows(methods))[KEY]
    assert not_separable(samples, PAIR) == {"best", "near"}


@pytest.mark.parametrize(
    ("methods", "bold"),
    [
        ({"kd": [75.0], "at": [60.0], "sp": [None]}, set()),
        ({"kd": [75.0], "at": [75.0], "sp": [60.0]}, set()),
        ({"kd": [75.0, 76.0], "at": [74.0, 75.0], "sp": [90.0]}, {"kd"}),
        ({"kd": [75.0, 76.0], "at": [74.0, 75.0]}, {"kd"}),  # by the same in each trial
        ({"kd": [75.0, 76.0], "at": [75.0, 76.0]}, {"kd", "at"}),
        ({"kd": [75.0, 76.0, None, None], "at": [None, None, 75.0, 75.5]}, set()),
        ({"kd": [75.0, 76.0], "at": [None, None]}, set()),
    ],
)
def test_what_is_not_tested_is_not_bold_beside_the_best(rows, methods, bold):
    samples = samples_by_table(rows(methods))[KEY]
    assert not_separable(samples, PAIR) == bold


def test_sheet_of_one_pair(rows):
    (statistics,) = compute_all(samples_by_table(rows(CLEAR)))
    (table,) = statistics_tables(statistics, "title")
    assert table.title == "title, against kd on each pair"
    header, *body, alone, first = table.lines
    assert [entry.text for entry in header] == ["method", "resnet32x4 → resnet8x4"]
    assert [entry.text for entry in body[0]] == ["ce", "-3.00 ± 0.10 (3), p < 0.001"]
    (sensitivity,) = statistics.sensitivity
    assert [entry.text for entry in alone] == [
        "(detectable by one test)",
        f"{sensitivity.detectable:.2f} (n = 3, sd 0.16)",
    ]
    assert [entry.text for entry in first] == ["(detectable at Holm’s first of 2)", f"{sensitivity.corrected:.2f}"]
    assert sensitivity.corrected == pytest.approx(sensitivity.sd * effect(3, 0.025))
    assert sensitivity.corrected > sensitivity.detectable
    assert [line[1].emphasis for line in body] == [
        Emphasis.significant,
        Emphasis.significant,
    ]  # better or worse, which is not the best
    assert "Holm-corrected over 2 comparisons" in table.caption
    assert "at α = 0.05 / 2" in table.caption


def test_pairs_without_variation_or_trials_say_which(rows):
    same, once = rows({"kd": [70.0] * 3, "at": [71.0] * 3}, ["same"]), rows({"kd": [70.0], "at": [71.0]}, ["once"])
    found = pd.concat([same, once, rows(CLEAR, ["usual"])])
    (statistics,) = compute_all(samples_by_table(found))
    table, _ = statistics_tables(statistics, "s")
    (line,) = [line for line in table.lines if line[0].text == "(detectable by one test)"]
    assert [entry.text for entry in line[1:3]] == ["no variation", "too few trials"]


DEGENERATE = {
    "one trial": {"kd": [70.0], "at": [71.0]},
    "nothing": {"kd": [None], "at": [None]},
    "no baseline value": {"kd": [None, None], "at": [71.0, 72.0]},
    "all the same": {"kd": [70.0] * 3, "at": [70.0] * 3, "ce": [70.0] * 3},
    "constant difference": {"kd": [70.0] * 3, "at": [71.0] * 3},
    "only one method": {"kd": [70.0, 71.0]},
    "disjoint trials": {"kd": [70.0, None], "at": [None, 71.0]},
    "extremes": {"kd": [0.0, 100.0], "at": [100.0, 0.0], "ce": [0.0, 0.0]},
}


@pytest.mark.parametrize("students", [["a"], ["a", "b"], list("abcdefg")])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_tables(rows, case, students):
    (statistics,) = compute_all(samples_by_table(rows(DEGENERATE[case], students)))
    tables = statistics_tables(statistics, case)
    text = str(tables)
    assert "nan" not in text
    assert "inf" not in text
    for table in tables:
        assert table.width
        assert {len(line) for line in table.lines} <= {table.width}
    if case == "one trial":
        assert "too few trials (two that both methods have are needed)" in text
    if case == "constant difference":
        assert "the difference is the same in all trials" in text
    if case in ("nothing", "only one method"):
        assert "nothing is compared: no other method has been measured" in text


def test_p_text():
    assert [p_text(p) for p in (None, 1e-9, 0.001, 1.0)] == ["", "p < 0.001", "p 0.001", "p 1.000"]
