"""Pictures look as they looked when somebody looked at them."""

import numpy as np
import pandas as pd

from kdbench.plots.bars import draw_bars, draw_improvement
from kdbench.plots.comparisons import draw_cd, draw_cost, draw_scatter
from kdbench.plots.heatmaps import draw_maps
from kdbench.plots.lines import draw_curves, draw_sweep
from kdbench.plots.style import panels, styled
from kdbench.reporting.paired_tests import Ranking


NAN = float("nan")


def curves(best=90.0):
    epochs = np.arange(1, 11)
    rows = [
        {
            "panel": "a → b",
            "method": method,
            "metric": "top1",
            "epoch": epoch,
            "mean": end - 40 / epoch,
            "sd": 40 / epoch / 8,
        }
        for method, end in (("ce", 80.0), ("kd", 85.0), ("at", 87.0), ("ega", best))
        for epoch in epochs
    ]
    points = {"panel": "a → b", "method": "ega", "metric": "top1", "epoch": 10, "published": 88.0}
    data = pd.DataFrame([*rows, points]).assign(n=3)
    with styled():
        return draw_curves(data, ["top1"])


def test_curves(looks_as_before):
    looks_as_before(curves(), "curves")


def test_another_number_is_another_picture(differ):
    assert not differ(curves(), curves())
    assert differ(curves(), curves(best=94.0))


def test_a_sweep_with_two_axes(looks_as_before):
    rows = [("semckd", beta, 74 + beta / 400, 0.2, NAN) for beta in (100, 200, 400, 800)]
    rows += [("crd", beta, 73 + beta, 0.1, 73.5 if beta == 0.8 else NAN) for beta in (0.4, 0.8, 1.2)]
    data = pd.DataFrame([*rows, ("kd", NAN, 72.7, 0.15, 72.73)], columns=["series", "x", "mean", "sd", "published"])
    with styled():
        figure = draw_sweep(data.assign(panel="a → b", flat=data["x"].isna()), "beta")
    looks_as_before(figure, "sweep")


def test_bars_with_lines_and_trials(looks_as_before):
    rows = [
        ("a → b", "ce", 70.0, 1.0, 70.5), ("a → b", "sp", 73.0, 0.5, NAN), ("a → b", "ega", 75.0, 0.4, 74.0),
        ("c → d", "ce", 66.0, NAN, NAN), ("c → d", "ega", 69.0, 0.7, 69.5), ("c → d", "kd", 68.0, NAN, NAN),
    ]  # fmt: skip
    data = pd.DataFrame(rows, columns=["group", "series", "mean", "sd", "published"])
    trials = [{0: mean - 1, 1: mean + 1} for mean in data["mean"]]
    with styled():
        figure = draw_bars(data.assign(panel="", values=trials), ["kd"])
    looks_as_before(figure, "bars")


def test_cost_with_its_front(looks_as_before):
    rows = [("ce", 10.0, 70.0, 0.5, True), ("crd", 40.0, 75.0, 0.3, True), ("sp", 30.0, 69.0, NAN, False)]
    data = pd.DataFrame(rows, columns=["method", "cost", "mean", "sd", "front"])
    with styled():
        figure = draw_cost(data.assign(panel="a → b"), "seconds of training")
    looks_as_before(figure, "cost")


def test_critical_differences(looks_as_before):
    ranks = {"ce": 4.8, "kd": 3.1, "at": 3.0, "crd": 1.6, "semckd": 2.5}
    ranking = Ranking(ranks=ranks, pairs=12, trials=(3, 3), critical_difference=1.76, left_out=(0, 0))
    with styled():
        figure, (axes,) = panels(1, height=1.0)
        draw_cd(axes, ranking)
    looks_as_before(figure, "cd")


def test_published_against_measured(looks_as_before):
    rows = [(74.0, 0.2, 74.1, 0.1, "agrees"), (70.0, NAN, 72.0, 0.3, "higher"), (76.0, 0.1, 74.5, NAN, "lower")]
    data = pd.DataFrame(rows, columns=["published", "published_sd", "mean", "sd", "verdict"])
    with styled():
        figure = draw_scatter(data)
    looks_as_before(figure, "scatter")


def test_improvements_measured_and_published(looks_as_before):
    rows = [
        (o, m, v + k * 9) for o, k in (("measured", 1), ("published", 0)) for m in ("at", "fitnet") for v in (5, 20, 60)
    ]
    with styled():
        figure = draw_improvement(pd.DataFrame(rows, columns=["origin", "method", "percent"]), "semckd")
    looks_as_before(figure, "improvement")


def test_heat_maps(looks_as_before):
    matrix = np.linspace(0, 1, 12).reshape(4, 3)
    rows, columns = ["S1", "S2", "S3", "S4"], ["T1", "T2", "T3"]
    with styled():
        figure = draw_maps({"a → b\nsemckd": (matrix, rows, columns)}, "attention", low=0.0, high=1.0)
    looks_as_before(figure, "attention")
