"""The HTML report: one file, whole, safe against names, small for many runs."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kdbench.reporting.captions import environments
from kdbench.reporting.html import Curve, cell_curves, html, own_methods, points_per_curve, safe_json, stride
from kdbench.reporting.observations import run_frame
from kdbench.reporting.options import Bold, ReportOptions, View
from kdbench.reporting.report import measured_report, published_report
from kdbench.reporting.tables import grid_tables
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.components import digest
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.suite import Suite, tiny_suite


SUITE = """\
protocol: smoke
dataset: digits
trials: 2
grid: {teacher: resnet8x4, student: [resnet8, resnet14], method: [ce, kd, at]}
"""


def make_page(suite, store, **options):
    return html(measured_report([suite], [store]), ReportOptions(**options))


class Elements(HTMLParser):
    """All tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_needs_nothing_else(trained):
    page = make_page(*trained(SUITE))
    found = Elements(page)
    assert not [attrs for _, attrs in found.tags if {"src", "srcset", "action"} & attrs.keys()]
    assert {attrs["href"][0] for _, attrs in found.tags if "href" in attrs} == {"#"}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_what_the_page_holds(trained):
    suite, store = trained(SUITE)
    found = Elements(make_page(suite, store, commands="kdbench run 'my suite.yaml'"))
    text = " ".join(" ".join(found.text).split())
    assert "12 runs: 11 done, 1 not run." in text
    assert "50.50 ± 0.71 (2)" in text
    assert "kdbench run 'my suite.yaml'" in text
    assert "grid: {teacher: resnet8x4" in text
    assert "Protocol smoke" in text
    assert "kd: {ce: 0.1, kd: 0.9}" in text
    assert "A card 2 Linux x86_64 0.1.0 2.9 2.1 3.12 11 0.18" in text
    assert "finished on 2026-01-02T03:04:05Z" in text
    assert "against kd on each pair" in text
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    assert {"results", "explore", "statistics", "environment", "reproduce"} <= ids
    assert {attrs["href"][1:] for _, attrs in found.tags if "href" in attrs} <= ids


def test_what_stands_behind_a_number(trained):
    suite, store = trained(SUITE)
    (table,) = data_of(make_page(suite, store))
    assert (table["methods"], table["pairs"]) == (["ce", "kd", "at"], ["resnet8x4 → resnet8", "resnet8x4 → resnet14"])
    kd = table["cells"][1]
    ids = [run.id for run in suite.runs if (run.method, run.spec.student) == ("kd", "resnet8")]
    assert kd["trials"] == [[0, ids[0], kd["mean"] - 0.5], [1, ids[1], kd["mean"] + 0.5]]
    assert (kd["macs"], kd["seconds"], kd["devices"]) == (5e12, 60.0, ["gpu"])
    assert kd["top1"]["epochs"] == [1, 2, 3, 4]
    assert kd["top1"]["high"][0] - kd["top1"]["low"][0] == 1.0
    shown = re.findall(r'data-cell="(\d+)" data-value="([\d.]+)"', make_page(suite, store))
    assert len(shown) == len({number for number, _ in shown}) == 6
    assert all(table["cells"][int(number)]["mean"] == float(value) for number, value in shown)
    last = table["cells"][-1]
    assert (last["planned"], [trial[2] is None for trial in last["trials"]]) == (2, [False, True])
    assert last["top1"]["low"] == []


def test_curves_and_costs_are_of_the_runs_that_have_a_number(trained):
    suite, store = trained(SUITE)
    damaged, diverged, training = suite.runs[2:5]  # kd on resnet8, both trials, and the first of at
    (store.run(damaged.id).folder / "result.json").write_text("{}")
    for run in (diverged, training):
        (store.run(run.id).folder / "result.json").unlink()
    store.run(diverged.id).fail(Failure(kind="diverged", epoch=3, reason="loss is nan"))
    store.run(training.id).state_file.write_bytes(b"")
    page = make_page(suite, store)
    ce, kd, at, *_ = data_of(page)[0]["cells"]
    assert (kd["mean"], kd["macs"], kd.keys() & {"top1", "loss"}) == (None, None, set())
    assert [trial[1:] for trial in kd["trials"]] == [[damaged.id, None], [diverged.id, None]]
    assert (at["mean"], at["top1"]["low"], len(ce["top1"]["low"])) == (at["trials"][1][2], [], 4)
    assert "A card 2 Linux x86_64 0.1.0 2.9 2.1 3.12 8 0.13" in " ".join(" ".join(Elements(page).text).split())


def test_the_methods_that_a_suite_is_about(load, tmp_path):
    (suite,) = (load_suite(bundled_suites()["ega_simultaneous"]),)
    (first, *_) = data_of(make_page(suite, Store(tmp_path)))
    assert [first["methods"][at] for at in first["own"]] == ["ega", "ega+kd", "ega-no-node", "ega-no-edge"]
    mine = "grid: {student: resnet8, method: [ce, {name: mine, terms: {ce: 1, kd: 2}}], teacher: resnet8x4}"
    assert own_methods([load(f"protocol: smoke\ndataset: digits\n{mine}")]) == {("smoke", "mine")}
    assert own_methods([load("protocol: semckd\ndataset: cifar100\ngrid: {student: vgg8, method: ce}")]) == set()


def test_what_a_test_finds_worse_is_not_in_the_colour_of_the_best(trained, finish):
    suite, store = trained(SUITE.replace("trials: 2", "trials: 3"))
    for run in suite.runs:
        finish(
            store.run(run.id),
            last={"ce": 40.0, "kd": 50.0, "at": 49.0}[run.method] + run.spec.trial / (9 if run.method == "ce" else 10),
        )
    page = make_page(suite, store)
    worse = [
        attrs for tag, attrs in Elements(page.partition('id="statistics"')[2]).tags if tag == "td" and "class" in attrs
    ]
    assert {attrs["class"] for attrs in worse} == {"significant worse"}
    marked = [attrs for _, attrs in Elements(page).tags if "data-worse" in attrs]
    assert {attrs["class"] for attrs in marked} == {"worse"}
    assert marked[0]["data-worse"].startswith("significantly worse than kd: -")
    assert "significantly worse than kd on the same pair" in page
    assert "significantly worse" not in make_page(*trained(SUITE.replace("method: [ce, kd, at]", "method: [kd, at]")))


def test_tiny_runs_are_told_in_the_title(trained):
    suite, store = trained(SUITE)
    page = make_page(tiny_suite(suite), store)
    assert f"<title>{suite.name} (tiny runs) – kdbench</title>" in page
    assert f"<h1>{suite.name} (tiny runs)</h1>" in page
    assert f"<title>{suite.name} – kdbench</title>" in make_page(suite, store)
    assert "<title>The papers’ tables – kdbench</title>" in html(published_report(["sskd-3"]), ReportOptions())


def test_what_is_not_separable_is_marked(trained, finish):
    suite, store = trained(SUITE)
    (run,) = [run for run in suite.runs if (run.method, run.spec.student, run.spec.trial) == ("kd", "resnet8", 0)]
    finish(store.run(run.id), last=51.0)
    marked = [attrs for _, attrs in Elements(make_page(suite, store, bold=Bold.separable)).tags if "data-cell" in attrs]
    best = [attrs for _, attrs in Elements(make_page(suite, store)).tags if "data-cell" in attrs]
    assert sum(attrs.get("class") == "best" for attrs in best) == 2
    assert sum(attrs.get("class") == "best" for attrs in marked) > 2


NAMED = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;{{ 7*7 }}'\""
HOSTILE = NAMED + "\u2028"


def test_hostile_names_stay_text(row, tmp_path):
    names = dict.fromkeys(("suite", "method", "teacher", "student", "protocol", "scenario"), HOSTILE)
    changes = {**names, "status": "missing"}
    runs = run_frame(
        [
            row(0, 50.0, **changes),
            row(1, None, reason=HOSTILE, **changes),
            row(0, 51.0, **{**changes, "method": "kd"}),
        ]
    )
    suite = Suite(HOSTILE, str(tmp_path / "s.yaml"), HOSTILE, ())
    (tmp_path / "s.yaml").write_text(HOSTILE, encoding="utf-8")
    content = {"runs": runs, "all_grids": grid_tables(runs), "suites": [suite], "stores": [Store(tmp_path)]}
    page = html(replace(published_report(["ega-1"]), **content), ReportOptions(commands=HOSTILE))
    found = Elements(page)
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert [attrs.get("type") for tag, attrs in found.tags if tag == "script"] == ["application/json", None, None]
    assert not [attrs for _, attrs in found.tags if any(name.startswith("on") for name in attrs)]
    assert "alert(1)" in "".join(found.text)
    assert data_of(page)[0]["methods"] == [HOSTILE, "kd"]
    assert "7*7" in page


def test_hostile_names_of_a_suite_stay_text(trained):
    text = SUITE.replace("[ce, kd, at]", json.dumps([{"name": NAMED, "terms": {"ce": 1, "kd": 2}}, "kd"]))
    suite, store = trained(f"name: {json.dumps(NAMED)}\ndescription: {json.dumps(NAMED)}\n{text}")
    page = make_page(suite, store)
    found = Elements(page)
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 3
    assert data_of(page)[0]["methods"] == [NAMED, "kd"]


PAPER = """\
protocol: semckd
dataset: cifar100
trials: 2
tables: semckd-2
grid: {teacher: resnet32x4, student: vgg8, method: [kd, at]}
"""


def test_what_stands_behind_a_number_of_a_papers_table(trained):
    suite, store = trained(PAPER)
    details = [
        attrs["data-detail"].split("\n")
        for _, attrs in Elements(make_page(suite, store)).tags
        if "data-detail" in attrs
    ]
    kd, at = suite.runs[0].id, suite.runs[2].id
    assert details[0][1:4] == ["mean 50.50, sd 0.71, n 2 of 2", "published 72.73 ± 0.15", f"trial 0: 50.00  {kd}"]
    assert details[1][1] == "mean 52.00, n 1 of 2"
    assert details[1][3:] == [f"trial 0: 52.00  {at}", f"trial 1: –  {suite.runs[3].id}", "not run (1 of 2)"]


def test_json_cannot_end_its_element():
    text = safe_json({HOSTILE: [HOSTILE]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


def test_published_tables_alone():
    found = Elements(html(published_report(), ReportOptions(View.published)))
    assert len([tag for tag, _ in found.tags if tag == "h3"]) == 24
    assert not {"results", "statistics"} & {attrs.get("id") for _, attrs in found.tags}


def test_nothing_run_yet(load, tmp_path):
    page = make_page(load(SUITE), Store(tmp_path / "none"))
    assert "12 runs: 12 not run." in page
    assert not (tmp_path / "none").exists()


def test_curves_are_means_with_extremes(trained):
    _, store = trained(SUITE)
    records = list(store.records("runs"))[:1]
    (path,) = [record.folder / "metrics.jsonl" for record in records]
    path.write_text('{"epoch": 1, "top1": 1.23456}\n{"epoch": 2, "top1": NaN}\n{"epoch": "x", "top1": 3}\n[]\n')
    assert cell_curves([(records[0], 1)]) == {"top1": Curve([1], [1.235], [], [])}
    assert cell_curves([]) == {}


@pytest.mark.parametrize(
    ("epochs", "tested", "points", "expected"),
    [(240, 1, 60, 4), (240, 1, 240, 1), (20, 10, 60, 1), (240, 10, 60, 10), (200, 3, 60, 6)],
)
def test_strides(trained, epochs, tested, points, expected):
    suite, _ = trained(SUITE)
    recipe = suite.runs[0].spec.recipe.model_copy(update={"epochs": epochs, "evaluate_every": tested})
    assert stride(recipe, points) == expected


def test_environments_without_facts():
    (header, line) = environments([{"device": 5, "versions": None, "seconds": "x"}]).lines
    assert [entry.text for entry in line] == ["?"] * 7 + ["1", "0.00"]
    assert len(header) == len(line)


@pytest.mark.slow
def test_two_thousand_runs_make_a_small_page_quickly(load, about, tmp_path, processor_time_below):
    suite = load(
        "protocol: crd\ndataset: cifar100\ntrials: 25\n"
        "grid: {teacher: resnet110, student: [resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, vgg8, vgg13, "
        "wrn-16-2, wrn-40-1], method: [ce, kd, at, sp, vid, rkd, pkt, cc]}"
    )
    assert len(suite.specs) == 2_000
    store = Store(tmp_path / "results")
    curve = [{"epoch": e, "lr": 0.05, "loss": 2 / e, "terms": {"ce": 1.5}, "top1": 70.0} for e in range(1, 241)]
    (tmp_path / "curve").write_text("".join(json.dumps(each) + "\n" for each in curve))
    accuracy = Accuracy(epoch=240, top1=70.0, top5=90.0)
    for id in suite.specs:
        folder = store.run(id).folder
        folder.mkdir(parents=True)
        result = Result(id=id, kind="run", last=accuracy, best=accuracy, weights_sha256="").model_dump(
            exclude_none=True
        )
        (folder / "result.json").write_text(json.dumps({**result, "checksum": digest(result)}))
        (folder / "metadata.json").write_text(json.dumps(about))
        (folder / "metrics.jsonl").hardlink_to(tmp_path / "curve")
    with processor_time_below(4.0):  # it takes a third of that, or half beside other work
        page = make_page(suite, store)
    assert len(page) < 1_000_000
    assert "2,000 runs: 2,000 done." in page


def test_pages_of_many_runs_have_coarser_curves():
    assert [points_per_curve(runs, runs // 5) for runs in (100, 2_000, 10_000)] == [120, 80, 16]
    assert points_per_curve(0, 0) == 120
