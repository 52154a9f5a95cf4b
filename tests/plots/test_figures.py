"""The papers' figures: what they name exists, and published numbers are those of reference.csv."""

import csv
import math
from importlib.resources import files
from pathlib import Path

import pytest

from kdbench.catalogue.pictures import KINDS, paper_figure, paper_figures
from kdbench.errors import BadInput
from kdbench.plots.data import PlotOptions, Source, cells
from kdbench.plots.kinds import DRAW, draw
from kdbench.reporting.report import measured_report
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suites
from kdbench.suite.selection import select


REFERENCE = list(csv.DictReader(files("kdbench.catalogue").joinpath("reference.csv").read_text("utf-8").splitlines()))


def number(paper, table, method, student, teacher="resnet32x4"):
    rows = [
        r for r in REFERENCE if (r["paper"], r["table"], r["method"], r["student"]) == (paper, table, method, student)
    ]
    (row,) = [r for r in rows if r["teacher"] == teacher]
    return float(row["value"])


def source(name, folder):
    figure = paper_figure(name)
    suites = select(load_suites(list(figure.suites)), [*figure.only])
    if figure.methods:
        suites = select(suites, [f"method={','.join(figure.methods)}"])
    published = {(each.method, each.teacher, each.student): each.value for each in figure.published}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in figure.options.items()}
    report = measured_report(suites, [Store(folder)])
    return Source(report, PlotOptions(**options, order=figure.methods), published, train="Train them: …")


def test_every_kind_of_picture_is_drawn():
    assert DRAW.keys() == KINDS.keys()


def test_there_are_the_figures_that_carry_results():
    names = "ega-fig-3 ega-fig-A ega-fig-B ega-fig-C sskd-fig-3a sskd-fig-3b sskd-fig-4a sskd-fig-4b sskd-fig-S1"
    assert list(paper_figures()) == [*names.split(), *(f"semckd-fig-{n}" for n in range(2, 8))]
    with pytest.raises(BadInput, match=r"unknown figure 'ega-fig-4'\. Did you mean 'ega-fig-"):
        paper_figure("ega-fig-4")


@pytest.mark.parametrize("name", paper_figures())
def test_a_figure_names_what_is_there(name):
    figure = paper_figure(name)
    assert figure.options.keys() <= KINDS[figure.kind].options
    assert set(figure.suites) <= bundled_suites().keys()
    suites = select(load_suites(list(figure.suites)), [*figure.only])
    methods = {run.method for suite in suites for run in suite.runs}
    cells = {(run.method, run.teacher, str(run.spec.student)) for suite in suites for run in suite.runs}
    assert set(figure.methods) <= methods
    for each in figure.published:
        assert each.method in methods
        assert not each.student or (each.method, each.teacher, each.student) in cells


def test_relative_improvements_are_those_of_tables_2_and_3(tmp_path):
    data = draw("improvement", source("semckd-fig-2", tmp_path)).data
    assert set(data["origin"]) == {"published"}
    assert len(data) == 70
    top1 = {
        (row["method"], row["teacher"], row["student"]): float(row["value"])
        for row in REFERENCE
        if row["paper"] == "semckd" and row["table"] in "23" and row["value"] not in ("", "nan")
    }
    plain = {(teacher, student): value for (method, teacher, student), value in top1.items() if method == "student"}
    for row in data.itertuples():
        pair = tuple(row.pair.split(" → "))
        ours, theirs = top1["semckd", *pair], top1[row.method, *pair]
        assert math.isclose(row.percent, 100 * (ours - theirs) / (theirs - plain[pair]), abs_tol=1e-6)


def test_published_points_are_those_of_tables_and_text(tmp_path):
    beta = cells(source("semckd-fig-7", tmp_path)).set_index("method")["published"].dropna()
    semckd, crd = (number("semckd", "2", "semckd", "vgg8"), number("semckd", "9", "crd", "vgg8"))
    assert dict(beta) == {"kd": number("semckd", "2", "kd", "vgg8"), "semckd[beta=400]": semckd, "crd[beta=0.8]": crd}
    assert round(semckd - crd, 2) == 1.73
    places = ["method", "teacher", "student"]
    softened = cells(source("semckd-fig-5", tmp_path)).set_index(places)["published"].to_dict()
    for teacher, student, gain in (("resnet32x4", "vgg8", 0.47), ("wrn-40-2", "mobilenetv2", 0.86)):
        flat = number("semckd", "2", "semckd", student, teacher)
        assert softened["semckd", teacher, student] == flat
        assert round(softened["semckd[temperature=4]", teacher, student] - flat, 2) == gain


def test_the_graph_of_64_images_is_that_of_table_1(tmp_path):
    data = draw("sweep", source("ega-fig-A", tmp_path)).data
    assert data["batch"].tolist() == [16, 32, 64, 128, 256]
    assert data["published"].dropna().to_dict() == {2: 76.65}


def test_lines_of_single_pairs_of_layers(tmp_path):
    data = draw("layer-pairs", source("semckd-fig-3", tmp_path)).data
    lines = data[data["series"].isin(["kd", "semckd"])]
    assert lines.pivot(index="panel", columns="series", values="published").to_numpy().tolist() == [
        [74.42, 76.23], [72.73, 75.27], [75.60, 76.39], [68.70, 69.61],
    ]  # fmt: skip
    assert len(data) - len(lines) == 12 + 12 + 12 + 9


@pytest.mark.parametrize("name", ["sskd-fig-4b", "sskd-fig-3b", "ega-fig-3", "semckd-fig-5"])
def test_published_numbers_alone_make_a_picture(tmp_path, name):
    data = draw(paper_figure(name).kind, source(name, tmp_path)).data
    assert data["published"].notna().any()
    assert data["mean"].isna().all()


@pytest.mark.parametrize("name", ["ega-fig-C", "semckd-fig-6", "sskd-fig-S1", "semckd-fig-4"])
def test_without_runs_there_is_the_command_that_makes_them(tmp_path, name):
    with pytest.raises(BadInput, match=r"is finished.* Train them: …"):
        draw(paper_figure(name).kind, source(name, tmp_path))


def test_columns_of_the_guide_are_those_of_the_figures():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "figures.md").read_text("utf-8")
    assert not [name for name in [*paper_figures(), *KINDS] if f"`{name}`" not in guide]
