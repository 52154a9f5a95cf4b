"""What each view shows of a cell."""

import pandas as pd
import pytest

from kdbench.reporting.cells import Verdict, cell_texts, summarise, verdict
from kdbench.reporting.options import TOLERANCE, View


def cells(*values, printed=(75.0, None), percent=True, decimals=2):
    """A table of one cell, with a published value and deviation, or none."""
    trials = pd.DataFrame({"trial": range(len(values)), "value": values, "reason": "not run", "cell": "kd"})
    published, sd = printed or (None, None)
    text = "" if printed is None else "nan" if published is None else f"{published:.2f}"
    numbers = {"published": published, "published_sd": sd}
    found = summarise(trials.astype({"value": float}), ["cell"]).assign(
        **{name: pd.Series([number], ["kd"], dtype=float) for name, number in numbers.items()}
    )
    return found.assign(printed=text, percent=percent, enough=2, decimals=decimals)


def text_of(found, view, tolerance=TOLERANCE):
    (text,) = cell_texts(found, view, tolerance)
    return text


def verdict_of(found, tolerance=TOLERANCE):
    (name,) = verdict(found, tolerance)
    return name


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
    ],
)
def test_views(view, values, printed, text):
    assert text_of(cells(*values, printed=printed), View(view)) == text


def test_decimals():
    assert text_of(cells(0.70125, printed=(0.7, None), decimals=4), View.both) == "0.7013 (1) | 0.70"


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (75.5, None, Verdict.agrees), (75.51, None, Verdict.above), (74.5, None, Verdict.agrees),
        (74.49, None, Verdict.below), (75.2, 0.1, Verdict.agrees), (75.21, 0.1, Verdict.above),
        (74.79, 0.1, Verdict.below), (76.0, 0.5, Verdict.agrees),
    ],
)  # fmt: skip
def test_verdict(mean, sd, expected):
    assert verdict_of(cells(mean, mean, printed=(75.0, sd))) == expected


def test_verdicts_that_cannot_be_given():
    assert verdict_of(cells(75.0)) == Verdict.few
    assert verdict_of(cells(75.0, None)) == Verdict.few
    assert verdict_of(cells(6.0, 6.0, printed=(5.0, None), percent=False)) == ""  # points mean nothing to a divergence
    assert verdict_of(cells(5.3, 5.3, printed=(5.0, 0.1), percent=False)) == Verdict.above
    assert verdict_of(cells(75.0, 75.0, printed=(None, None))) == ""


def test_tolerance():
    far = cells(76.0, 76.0)
    assert verdict_of(far) == Verdict.above
    assert verdict_of(far, 1.0) == Verdict.agrees
    assert text_of(far, View.verdict, 0.9) == "higher"
