"""What each view shows of a cell."""

import pytest

from kdbench.report.cells import Verdict, cell_text, make_cell
from kdbench.report.options import View
from kdbench.report.published import Key, Published


KEY = Key("semckd", "kd", "t", "s", "d", "", "", "top1")


def cell(*values, printed=(75.0, None), percent=True):
    number = printed and Published(KEY, *printed, text="nan" if printed[0] is None else f"{printed[0]:.2f}")
    trials = [(trial, value, "" if value is not None else "not run") for trial, value in enumerate(values)]
    return make_cell(trials, number, percent=percent)


@pytest.mark.parametrize(
    ("view", "values", "printed", "text"),
    [
        ("measured", (75.1, 75.3), (75.0, None), "75.20 ± 0.14 (2)"),
        ("measured", (75.1, None), (75.0, None), "75.10 (1 of 2)"),
        ("measured", (None,), (75.0, None), "–"),
        ("both", (75.1, 75.3), (75.0, None), "75.20 ± 0.14 (2) | 75.00"),
        ("both", (75.1, 75.3), None, "75.20 ± 0.14 (2)"),
        ("both", (None,), (75.0, None), "– | 75.00"),
        ("both", (75.1,), (None, None), "75.10 (1) | nan"),
        ("published", (75.1,), (75.0, None), "75.00"),
        ("published", (75.1,), None, "–"),
        ("difference", (75.1, 75.3), (75.0, None), "+0.20"),
        ("difference", (74.0,), (75.0, None), "-1.00"),
        ("difference", (None,), (75.0, None), "–"),
        ("difference", (75.1,), (None, None), "–"),
        ("verdict", (75.1, 75.3), (75.0, None), "agrees"),
        ("verdict", (75.1,), None, "–"),
        ("verdict", (), (75.0, None), "–"),
    ],
)
def test_views(view, values, printed, text):
    assert cell_text(cell(*values, printed=printed), View(view)) == text


def test_nothing_and_decimals():
    assert cell_text(None, View.both) == ""
    assert cell_text(cell(0.70125, printed=(0.7, None)), View.both, decimals=4) == "0.7013 (1) | 0.70"


@pytest.mark.parametrize(
    ("mean", "sd", "verdict"),
    [
        (75.5, None, Verdict.agrees), (75.51, None, Verdict.above), (74.5, None, Verdict.agrees),
        (74.49, None, Verdict.below), (75.2, 0.1, Verdict.agrees), (75.21, 0.1, Verdict.above),
        (74.79, 0.1, Verdict.below), (76.0, 0.5, Verdict.agrees),
    ],
)  # fmt: skip
def test_verdict(mean, sd, verdict):
    assert cell(mean, mean, printed=(75.0, sd)).verdict() is verdict


def test_verdicts_that_cannot_be_given():
    assert cell(75.0).verdict() is Verdict.few
    assert cell(75.0, None).verdict() is Verdict.few
    assert cell(6.0, 6.0, printed=(5.0, None), percent=False).verdict() is None  # points mean nothing to a divergence
    assert cell(5.3, 5.3, printed=(5.0, 0.1), percent=False).verdict() is Verdict.above
    assert cell(75.0, 75.0, printed=(None, None)).verdict() is None


def test_tolerance():
    far = cell(76.0, 76.0)
    assert far.verdict() is Verdict.above
    assert far.verdict(1.0) is Verdict.agrees
    assert cell_text(far, View.verdict, tolerance=0.9) == "higher"
