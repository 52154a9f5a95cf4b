"""The pictures of a report's page: which are drawn, and what the page is given of each."""

from dataclasses import replace
from io import BytesIO

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kdbench.catalogue.pictures import KINDS
from kdbench.errors import BadInput, KdbenchError
from kdbench.plots import gallery as galleries
from kdbench.plots.gallery import gallery
from kdbench.plots.style import Picture, note
from kdbench.reporting.report import measured_report
from kdbench.suite.selection import select


@pytest.fixture
def report(finished):
    suite, store = finished
    return measured_report(select([suite], ["method=ce,kd,kd[temperature=2],kd[temperature=8]"]), [store])


@pytest.fixture
def asked(monkeypatch):
    """What is drawn, with stand-ins for the pictures: the kind, its pair of networks or "", and its setting."""
    found = []

    def drawn(kind, source):
        found.append((kind, " ".join(dict.fromkeys(source.runs["student"])), source.options.over))
        if KINDS[kind].networks:
            source.ask({"view": kind})
        if kind == "gap":
            raise BadInput("nothing to show")
        figure = Figure(figsize=(2, 0.2))
        note(figure, f"about {kind}", "n = 2 trials")
        rows = 201 if kind == "bars" else 200
        return Picture(figure, pd.DataFrame({"method": "kd", "mean": [1.23456] * (rows - 1) + [float("nan")], "n": 2}))

    monkeypatch.setattr(galleries, "draw", drawn)
    return found


def test_pictures_of_all_runs_come_before_views_of_each_pair(report, asked):
    found = gallery(report, lambda request: None, lambda text: None)
    both, views = "vgg8 resnet8x4", ("class-accuracy", "attention", "similarity", "tsne")
    whole = ["curves", "bars", "layer-pairs", "improvement", "cost", "scatter", "cd"]
    assert [kind for kind, *_ in asked] == [
        "curves", "sweep", "bars", "layer-pairs", "gap", "improvement", "cost", "scatter", "cd", *views, *views,
    ]  # fmt: skip
    assert [each for each in asked if each[0] in ("sweep", "bars")] == [
        ("sweep", both, "temperature"), ("bars", both, None),
    ]  # fmt: skip
    assert [student for kind, student, _ in asked if kind == "tsne"] == ["vgg8", "resnet8x4"]
    assert [each.pair for each in found if each.kind == "tsne"] == [
        "resnet32x4 → vgg8", "resnet32x4 → resnet8x4",
    ]  # fmt: skip
    assert [each.kind for each in found if not each.pair] == ["curves", "sweep", *whole[1:]]


def test_a_picture_is_sharp_and_has_its_caption_and_numbers(report, asked):
    shown = {each.kind: each for each in gallery(report, None, lambda text: None)}
    curves = shown["curves"]
    assert curves.caption.replace("\N{NO-BREAK SPACE}", " ") == "about curves; n = 2 trials."
    assert curves.summary == "What runs record, by epoch"
    assert curves.methods == ("kd",)
    width = Image.open(BytesIO(curves.png)).width
    assert width == pytest.approx(curves.width * 1.5, abs=1)  # drawn at 180 pixels per inch, shown at 120
    assert curves.width == 240
    assert curves.numbers[:2] == (("method", "mean", "n"), ("kd", "1.235", "2"))
    assert curves.numbers[-1] == ("kd", "", "2")
    assert len(curves.numbers) == 1 + 200
    assert shown["bars"].numbers == ()


def test_without_networks_their_views_are_left_out_and_why_is_said_once(report, asked):
    def fails(request):
        raise KdbenchError("no data set")

    told = []
    assert {each.kind for each in gallery(report, fails, told.append) if each.pair} == {"attention"}
    assert told == ["a page without some views of networks: no data set"]
    assert {each.kind for each in gallery(report, None, told.append) if each.pair} == {"attention"}
    assert len(told) == 1


def test_views_of_twelve_pairs_at_most(report, monkeypatch):
    asked = []

    def lacks(kind, source):
        asked.append(kind)
        raise BadInput("nothing to show")

    monkeypatch.setattr(galleries, "draw", lacks)
    many = pd.concat([report.runs[:1].assign(student=f"net{at}") for at in range(13)], ignore_index=True)
    told = []
    gallery(replace(report, runs=many[:12]), None, told.append)
    assert (asked.count("attention"), told) == (12, [])
    gallery(replace(report, runs=many), None, told.append)
    assert asked.count("attention") == 24
    assert told == ["views of the first 12 of 13 pairs are shown: choose others with --only"]
