"""kdbench plot and kdbench list figures."""

import json
import re
import shutil
import sys

import pandas as pd
import pytest

from kdbench.catalogue.pictures import paper_figures
from kdbench.errors import KdbenchError


SUITE = """\
protocol: smoke
dataset: digits
trials: 2
methods:
  hurts: {ce: 2}
  "kd[temperature=2]": {ce: 1, kd: {weight: 1, temperature: 2}}
  "kd[temperature=4]": {ce: 1, kd: {weight: 1, temperature: 4}}
grid:
  - teacher: resnet8x4
    student: [resnet8, wrn-16-1]
    method: [ce, kd, at, hurts, "kd[temperature=2]", "kd[temperature=4]"]
"""


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(SUITE)
    return file


@pytest.fixture
def results(tmp_path, finished_once):
    return shutil.copytree(finished_once, tmp_path / "results")


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    """A results folder in which all runs of the suite are done, each trial of a method better by one than the one before."""
    from kdbench.store.result import Accuracy, Result
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suite

    values = {"ce": 40.0, "kd": 50.0, "at": 45.0, "hurts": 30.0, "kd[temperature=2]": 51.0, "kd[temperature=4]": 55.0}
    folder = tmp_path_factory.mktemp("finished")
    (folder / "own.yaml").write_text(SUITE)
    for run in load_suite(folder / "own.yaml").runs:
        record = Store(folder / "results").run(run.id)
        last = Accuracy(epoch=2, top1=values[run.method] + run.spec.trial, top5=90.0)
        record.begin(run.spec.canonical())
        record.write_metrics(
            [
                {"epoch": 1, "loss": 2.0, "train_error": 60.0, "terms": {"ce": 1.5}},
                {"epoch": 2, "loss": 1.0, "train_error": 30.0, "top1": last.top1},
            ]
        )
        about = {"device": {"kind": "cpu"}, "macs": 1e9, "seconds": 10.0 + values[run.method]}
        record.finish(Result(id=run.id, kind="run", last=last, best=last, weights_sha256=""), about)
    return folder / "results"


@pytest.mark.parametrize(
    ("kind", "options", "columns"),
    [
        ("curves", ["--metric", "loss", "--metric", "terms.ce"], {"epoch", "mean", "sd", "n"}),
        (
            "sweep",
            ["--only", "method=ce,kd[temperature=2],kd[temperature=4]"],
            {"temperature", "mean", "sd", "n", "trials"},
        ),
        ("bars", ["--line", "ce"], {"group", "mean", "sd", "n", "trials"}),
        ("improvement", ["--target", "kd"], {"origin", "percent"}),
        ("cost", [], {"seconds", "mean", "sd", "n", "front"}),
        ("cd", [], {"rank", "critical_difference"}),
    ],
)
def test_a_picture_and_its_data(kdbench, tmp_path, suite, results, kind, options, columns):
    done = kdbench("plot", kind, suite, *options, "-o", "a.svg")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "written to a.svg and a.csv\n"
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert set(pd.read_csv(tmp_path / "a.csv").columns) >= columns


def test_the_data_are_means_deviations_and_trials(kdbench, tmp_path, suite, results):
    kdbench(
        "plot",
        "sweep",
        suite,
        "--only",
        "student=resnet8",
        "--only",
        "method=ce,kd[temperature=4]",
        "--over",
        "temperature",
        "-o",
        "a.png",
    )
    kdbench("plot", "bars", suite, "--only", "student=resnet8", "-o", "b.png")
    row = pd.read_csv(tmp_path / "b.csv").set_index("method").loc["kd[temperature=4]"]
    assert (row["mean"], row["n"], row["trials"]) == (55.5, 2, "0:55 1:56")
    assert row["sd"] == pytest.approx(0.5**0.5, rel=1e-5)


def test_the_front_holds_what_nothing_beats(kdbench, tmp_path, suite, results):
    kdbench("plot", "cost", suite, "--only", "student=resnet8", "-o", "a.png")
    front = pd.read_csv(tmp_path / "a.csv").set_index("method")["front"]
    assert front.all()  # each method that costs more is better


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curvs", "demo"], "no kind of picture is called 'curvs'. Did you mean 'curves'?"),
        (["-o", "a.png"], "name a kind of picture (curves, sweep"),
        (["curves", "demo"], "--output is missing"),
        (["curves", "demo", "-o", "a.jpg"], "--output a.jpg: a picture is .png, .svg, .pdf"),
        (["curves", "demo", "--over", "beta", "-o", "a.png"], "--over is for sweep, not curves"),
        (["curves", "demo", "-o", "a.png"], "no run of demo is finished. Train what is missing: kdbench run demo"),
        (["--paper", "ega-fig-D", "-o", "a.png"], "unknown figure 'ega-fig-D'. Did you mean 'ega-fig-"),
        (["sweep", "--paper", "ega-fig-A", "-o", "a.png"], "is a picture of the kind sweep: leave out 'sweep'"),
        (["--paper", "semckd-fig-7", "demo", "-o", "a.png"], "no run of demo is finished"),
        (["--paper", "sskd-fig-3a", "demo", "-o", "a.png"], "the figure shows pretext-alone, and no run"),
        (["--paper", "ega-fig-C", "-o", "a.png"], "kdbench run ega_simultaneous --only teacher=clip-vit-b32"),
    ],
)
def test_bad_input_is_refused_in_one_line(kdbench, tmp_path, arguments, words):
    done = kdbench("plot", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curves", "--metric", "los"], "--metric los: no run of these records it. Did you mean 'loss'?"),
        (["sweep", "--only", "method=ce,kd"], "no setting varies: draw bars instead"),
        (
            ["sweep", "--over", "temprature"],
            "--over temprature: no setting of these runs varies under this name. Did you mean",
        ),
        (["bars", "--metric", "probe"], "these suites train no linear probes"),
        (["layer-pairs"], "no method of these suites is named by a pair of layers"),
        (["scatter"], "no cell of these suites has both a measured and a published number"),
        (["attention"], "no run of these suites has recorded attention"),
        (["gap"], "no trial has a method, the plain student (ce) and a better teacher"),
        (
            ["improvement", "--target", "kd", "--only", "method=ce,kd,hurts"],
            "not defined where no other method beats ce",
        ),
        (["improvement", "--target", "kdd"], "--target kdd: no run has this method. Did you mean 'kd'?"),
        (["confusion"], "and 23 more runs are not there, and this picture needs them: those of tiny runs are not kept"),
    ],
)
def test_what_results_lack_is_said(kdbench, tmp_path, suite, results, arguments, words):
    done = kdbench("plot", arguments[0], suite, *arguments[1:], "-o", "a.png")
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_without_matplotlib_one_line_says_what_to_install(kdbench, monkeypatch, suite, results):
    for name in [
        name for name in sys.modules if name.startswith("kdbench.plots") or name.partition(".")[0] == "matplotlib"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = kdbench("plot", "bars", suite, "-o", "a.png")
    assert done.returncode == 2
    assert done.stderr == "pictures need matplotlib, which cannot be imported: pip install 'kdbench[plots]'\n"


def test_a_papers_figure_of_a_suite_of_ones_own(kdbench, tmp_path, suite, results):
    done = kdbench("plot", "--paper", "ega-fig-3", suite, "--only", "method=ce", "-o", "a.pdf")
    assert done.returncode == 0, done.stderr
    data = pd.read_csv(tmp_path / "a.csv")
    assert set(data["metric"]) == {"train_error", "top1_error"}
    assert set(data.loc[data["metric"] == "train_error", "mean"]) == {60, 30}
    assert set(data.loc[data["metric"] == "top1_error", "mean"]) == {100 - 40.5}
    assert data["published"].isna().all()


def test_figures_are_listed(kdbench):
    lines = json.loads(kdbench("list", "figures", "--json").stdout)
    assert [line["figure"] for line in lines] == list(paper_figures())
    assert lines[0] == {"figure": "ega-fig-3", "kind": "curves", "suite": "ega_simultaneous", "": "Learning curves"}


@pytest.mark.slow
def test_pictures_of_networks_that_were_trained(kdbench, one_process, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("""\
protocol: {base: smoke, node_embedding: 16}
dataset: {name: digits, train_per_class: 4, test_per_class: 3}
grid:
  - {teacher: resnet8, student: resnet8, method: [ce, semckd], protocol: smoke}
  - {teacher: resnet8, student: resnet14, method: ega, strategy: simultaneous}
""")
    done = kdbench("run", file, "--devices", "cpu", "--jobs-per-device", "1")
    assert done.returncode == 0, done.stderr
    rows = {
        "attention": 3 * 3,
        "class-accuracy": 3 * 10 + 2 * 10,
        "correlation": 2 * 100 + 100,
        "similarity": 2 * 9 + 9,
        "confusion": 3 * 100 + 2 * 100,
        "tsne --class 3 --class 7": 6 * 5,
        "gradcam --image 3 --image 5": 2 * 5 * 8 * 8,
        "calibration": None,
    }
    for words, count in rows.items():
        kind, *options = words.split()
        done = kdbench("plot", kind, file, *options, "-o", f"{kind}.png")
        assert done.returncode == 0, done.stderr
        data = pd.read_csv(tmp_path / f"{kind}.csv")
        assert count is None or len(data) == count, kind
        if kind == "correlation":
            assert (data.loc[data["row"] == data["column"], "difference"] < 1e-5).all()
        if kind == "gradcam":
            assert data["method"].nunique() == 5  # two teachers, ce, semckd, ega
            assert data["heat"].between(0, 1).all()
        if kind == "class-accuracy":
            means = data.groupby(["panel", "method"])["mean"].mean()
            found = json.loads(kdbench("report", file, "-f", "json").stdout)["facts"]
            assert set(means.round(2)) >= {round(fact["value"], 2) for fact in found if fact["metric"] == "top1"}
    done = kdbench("plot", "tsne", file, "--class", "ten", "-o", "a.png")
    assert "--class ten: digits has no such class" in done.stderr
    page = kdbench("report", file, "-f", "html", "--views").stdout
    shown = re.findall(r'<img width="\d+" alt="([\w-]+) of (resnet8 → resnet\d+)[^"]*:', page)
    ours, online = "resnet8 → resnet8", "resnet8 → resnet14"
    views = ["class-accuracy", "attention", "similarity", "tsne"]
    assert shown == [*((view, ours) for view in views), *((view, online) for view in views if view != "attention")]


def test_a_page_shows_the_pictures_that_the_results_are_enough_for(kdbench, suite, results):
    done = kdbench("report", suite, "--results", results, "-f", "html", "--pictures")
    shown = re.findall(r'<img width="\d+" alt="([\w-]+): [^"]+" src="data:image/png;base64,iVBOR', done.stdout)
    assert {"curves", "sweep", "bars", "cost"} <= set(shown)
    assert not {"tsne", "scatter"} & set(shown)
    captions = [text.replace("\N{NO-BREAK SPACE}", " ") for text in re.findall(r"<figcaption.*", done.stdout)]
    assert sum("mean ± sd" in text and "n = 2 trials" in text for text in captions) >= 3
    assert "<td>resnet8x4 → resnet8</td><td>kd</td>" in done.stdout  # the numbers behind the bars
    assert "img-src data:" in done.stdout
    assert "<img" not in kdbench("report", suite, "--results", results, "-f", "html").stdout
    assert "--pictures is for --format html" in kdbench("report", suite, "--results", results, "--pictures").stderr


def test_views_that_cannot_be_drawn_leave_a_page_without_them(kdbench, monkeypatch, suite, results):
    for folder in (results / "runs").iterdir():
        (folder / "weights.safetensors").touch()

    def lost(request):
        raise KdbenchError(f"{request['view']}: no data set")

    monkeypatch.setattr("kdbench.cli.report.networks_of", lambda data: lost)
    done = kdbench("report", suite, "-f", "html", "--views", "--data", "elsewhere")
    assert done.returncode == 0
    told = [
        f"a page without some views of networks: {view}: no data set"
        for view in ("predictions", "layers", "embeddings")
    ]
    assert done.stderr.splitlines() == told  # once, though there are two pairs
    assert 'alt="bars: ' in done.stdout
    assert 'alt="tsne' not in done.stdout
    assert "--views --data elsewhere" in done.stdout
    refused = kdbench("report", suite, "--views")
    assert (refused.returncode, refused.stderr.startswith("--views is for --format html")) == (2, True)
