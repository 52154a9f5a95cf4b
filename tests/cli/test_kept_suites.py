"""Suites are kept with their results: reported without being named, and without what only training needs."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from kdbench.cli import report
from kdbench.cli.app import app
from kdbench.execution import devices, runner
from kdbench.execution.scheduler import Outcome
from kdbench.models import build
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.store.suites import kept_suites
from kdbench.suite import load
from kdbench.suite.load import load_suite


SUITE = """\
name: odd name
protocol: smoke
dataset: {name: digits, train_per_class: 4, test_per_class: 2}
trials: 2
teachers: {mine: {network: resnet8, weights: checkpoint.pth}}
grid: {teacher: mine, student: resnet8, method: [ce, "kd"]}
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command line in an empty folder, with a pool that finishes all runs at once."""

    class Pretender:
        def __init__(self, slots, options, listen):
            self.store = Store(options.results)

        def run(self, plan):
            accuracy = Accuracy(epoch=2, top1=43.21, top5=90.0)
            records = [(self.store.run(spec.id), spec) for cohort in plan.cohorts for spec in cohort.runs]
            records += [(self.store.teacher(teacher.id), teacher) for teacher in plan.teachers]
            for record, spec in records:
                record.begin(spec.canonical())
                kind = "run" if record.folder.parent.name == "runs" else "teacher"
                result = Result(id=record.id, kind=kind, last=accuracy, best=accuracy, weights_sha256="")
                record.finish(result, {"weights": "not kept"})
            return Outcome()

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done

    monkeypatch.setattr(runner, "Pool", Pretender)
    monkeypatch.setattr(Store, "check_teacher", lambda self, teacher: None)
    monkeypatch.setattr(runner, "misfits", lambda teachers, files: [])
    monkeypatch.setattr(devices, "query_devices", lambda **_: devices.Machine(threads=1))
    bundled = {name: path for name, path in load.bundled_suites().items() if name in ("demo", "smoke")}
    for module in (load, report):  # the others take long to load
        monkeypatch.setattr(module, "bundled_suites", lambda: bundled)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my suite.yaml").write_text(SUITE)
    save_file(build("resnet8", 10).state_dict(), tmp_path / "checkpoint.pth")
    return run


def test_the_page_shows_the_commands_that_were_given(call):
    page = call(
        "run", "my suite.yaml", "--trials", 1, "--only", "method=kd", "--results", "re sults", "-f", "html"
    ).stdout
    run = "kdbench run &#39;my suite.yaml&#39; --trials 1 --only method=kd --results &#39;re sults&#39;"
    report = run.replace("kdbench run", "kdbench report") + " -f html -o report.html"
    assert f">{run}\n{report}</pre>" in page
    assert f"{run} --data d\n{report}<" in call(
        "run", "my suite.yaml", "--trials", 1, "--only", "method=kd", "--results", "re sults", "-f", "html", "--data", "d"
    ).stdout  # fmt: skip


def test_a_suite_is_reported_without_being_named(call, tmp_path):
    call("run", "my suite.yaml", "--results", "re sults")
    assert "odd name: digits" in call("report", "--results", "re sults").stdout
    page = call("report", "--results", "re sults", "-f", "html").stdout
    assert f"kdbench run &#39;{tmp_path / 'my suite.yaml'}&#39; --results" in page
    os.remove("my suite.yaml")
    os.remove("checkpoint.pth")
    done = call("report", "--results", "re sults", "-f", "html")
    (kept,) = tmp_path.glob("re sults/suites/*/my suite.yaml")
    assert f"kdbench run &#39;{str(kept).removeprefix(f'{tmp_path}/')}&#39;" in done.stdout
    assert "43.21" in done.stdout
    assert "checkpoint.pth is not there: its SHA-256 is taken from the run of 2" in done.stderr
    assert "43.21 ± 0.00 (2)" in call("report", kept, "--results", "re sults").stdout
    assert (
        "43.21 ± 0.00 (2)"
        in call("report", "--results", "re sults", "--results", shutil.copytree("re sults", "b")).stdout
    )


def test_finished_runs_need_no_weights(call, tmp_path):
    call("run", "my suite.yaml")
    os.remove("checkpoint.pth")
    assert "43.21 ± 0.00 (2)" in call("report", "my suite.yaml").stdout
    assert json.loads(call("plan", "my suite.yaml", "--json").stdout)["runs"] == 0
    assert "43.21 ± 0.00 (2)" in call("run", "my suite.yaml").stdout  # and does not forget what it was
    (tmp_path / "my suite.yaml").write_text(SUITE.replace("trials: 2", "trials: 3"))
    assert "43.21 ± 0.00 (2 of 3)" in call("report", "my suite.yaml").stdout
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.yaml").write_text(SUITE)  # the same suite
    assert "43.21 ± 0.00 (2)" in call("report", "elsewhere/other.yaml").stdout
    (tmp_path / "elsewhere" / "other.yaml").write_text(SUITE + "# another\n")
    with pytest.raises(Exception, match=r"'checkpoint.pth': no such file"):
        call("report", "elsewhere/other.yaml")


def test_an_edited_suite_takes_the_place_of_the_old_one_and_equal_names_stay_apart(call, tmp_path):
    call("run", "my suite.yaml", "--trials", 1)
    (tmp_path / "my suite.yaml").write_text(SUITE.replace('[ce, "kd"]', "[ce, at]"))
    call("run", "my suite.yaml", "--trials", 1)
    titles = [line for line in call("report").stdout.splitlines() if line.startswith("odd name")]
    assert titles == ["odd name: digits (10 classes, 4 + 2 images each), pretrained teacher"]
    shutil.copytree(tmp_path / "results", tmp_path / "theirs")
    (tmp_path / "my suite.yaml").rename("their suite.yaml")
    (tmp_path / "my suite.yaml").write_text(SUITE)
    for name in ("their suite.yaml", "my suite.yaml"):
        call("run", name, "--trials", 1)
    titles = [line.partition(":")[0] for line in call("report").stdout.splitlines() if line.startswith("odd name")]
    assert len(set(titles)) == 2
    assert "odd name" in titles


def test_pipes(call, tmp_path, monkeypatch):
    """A named pipe that nobody writes to is not read again; what came through it before is not replaced."""
    reading = Path.read_bytes
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "pipe" and os.path.isfile(path))
    monkeypatch.setattr(os.path, "isfile", lambda path: Path(path).name != "pipe" and os.path.exists(path))
    monkeypatch.setattr(Path, "read_bytes", lambda path: reading(path) if path.name != "pipe" else pytest.fail("waits"))
    for text in (SUITE, SUITE.replace("trials: 2", "trials: 1")):
        (tmp_path / "pipe").write_text(text)
        call("run", "pipe")
    (first, second) = kept_suites([Store(tmp_path / "results")])
    assert [first.original.name, second.original.name] == ["suite.yaml"] * 2
    os.remove("checkpoint.pth")
    assert "43.21 ± 0.00 (2)" in call("report", first.file).stdout


def test_what_is_kept_and_cannot_be_read_is_left_out(call, tmp_path):
    call("run", "my suite.yaml")
    call("run", "demo", "--tiny")
    (tmp_path / "my suite.yaml").unlink()
    (about,) = (path.parent / "about.json" for path in tmp_path.glob("results/suites/*/my suite.yaml"))
    (about.parent / "my suite.yaml").write_text("grid: 5\n")
    done = call("report", "--tiny")
    assert "demo: " in done.stdout
    assert "my suite.yaml is left out: " in done.stderr
    about.write_text("{}")
    assert call("report", "--tiny").stderr == ""


def test_a_bundled_suite_is_reported_as_it_was_when_it_has_changed(call, tmp_path, monkeypatch):
    """It is kept with the results, and reported once as long as it is the same."""
    call("run", "demo", "--tiny")
    assert "demo (" not in call("report", "--tiny").stdout
    (tmp_path / "demo.yaml").write_text(SUITE.replace("weights: checkpoint.pth", "pretraining: simclr"))
    for module in (load, report):
        monkeypatch.setattr(module, "bundled_suites", lambda: {"demo": tmp_path / "demo.yaml"})
    (kept,) = tmp_path.glob("results/suites/*")
    assert f"demo ({kept.name}): " in call("report", "--tiny").stdout


@pytest.mark.parametrize("name", ["odd name", "my suite", "my suite.yaml"])
def test_a_name_finds_a_suite_that_is_kept_with_a_colleagues_results(call, tmp_path, name):
    call("run", "my suite.yaml", "--results", "there")
    os.remove("my suite.yaml")
    os.remove("checkpoint.pth")
    (tmp_path / "there").rename("moved")
    assert "43.21 ± 0.00 (2)" in call("report", name, "--results", "moved").stdout


def test_nothing_is_kept_where_nothing_can_be_written(call, tmp_path, monkeypatch):
    call("run", "my suite.yaml")
    shutil.rmtree(tmp_path / "results" / "suites")
    (tmp_path / "results" / "suites").write_text("no folder")
    assert "43.21" in call("run", "my suite.yaml").stdout
    assert load_suite(tmp_path / "my suite.yaml").text == SUITE


@pytest.mark.parametrize("words", [["plan", "smoke"], ["report", "smoke"], ["report"], ["verify"]])
def test_results_of_the_first_version_are_mentioned_and_stay(tmp_path, words):
    record = tmp_path / "runs" / ("0" * 12)
    record.mkdir(parents=True)
    for name in ("result.json", "about.json"):
        (record / name).write_text("{}")
    done = CliRunner().invoke(app, [*words, "--results", str(tmp_path)])
    assert f"{tmp_path}: 1 record was written by kdbench 0.1 and is not used" in done.output
    assert sorted(path.name for path in record.iterdir()) == ["about.json", "result.json"]


def test_changed_protocols_are_other_runs_that_are_found_again(call, tmp_path):
    """--set changes ids and captions as a line in the file would, and what is kept of the suite says it."""
    changed = ["--set", "protocol.epochs=5", "--set", "protocol.teacher.lr=0.02"]
    call("run", "my suite.yaml", "--trials", 1)
    assert json.loads(call("plan", "my suite.yaml", "--trials", 1, "--json", *changed).stdout)["runs"] == 2
    done = call("run", "my suite.yaml", "--trials", 1, *changed, "-f", "html").stdout
    assert "protocol smoke* (epochs 5, teacher.lr 0.02)" in done
    assert (
        "kdbench run &#39;my suite.yaml&#39; --trials 1 --set protocol.epochs=5 --set protocol.teacher.lr=0.02" in done
    )
    assert "43.21" in call("report", "my suite.yaml", *changed).stdout
    call("run", "smoke", "--only", "method=kd", "--only", "strategy=pretrained", "--set", "protocol.epochs=3", "--tiny")
    text = SUITE.replace("protocol: smoke", "protocol: {base: smoke, epochs: 5, teacher: {lr: 0.02}}")
    (tmp_path / "other.yaml").write_text(text)
    assert json.loads(call("plan", "other.yaml", "--trials", 1, "--json").stdout)["runs"] == 0
    (tmp_path / "my suite.yaml").unlink()
    (tmp_path / "other.yaml").unlink()
    captions = " ".join(call("report").stdout.split())
    assert "protocol smoke* (epochs 5, teacher.lr 0.02)" in captions
    assert "protocol smoke;" in captions
    assert "tiny smoke* (epochs 3)" in " ".join(call("report", "--tiny").stdout.split())


def test_a_file_of_other_classes_is_still_without_its_classifier_when_it_is_gone(call, tmp_path):
    other = build("resnet8", 100).state_dict()
    save_file(other, tmp_path / "checkpoint.pth")
    text = SUITE.replace("smoke", "{base: smoke, node_embedding: 16}").replace(
        "}\ngrid: {", "}\ngrid: {strategy: sequential, "
    )
    (tmp_path / "my suite.yaml").write_text(text)
    before = {run.id for run in load_suite(tmp_path / "my suite.yaml").runs}
    call("run", "my suite.yaml")
    (tmp_path / "checkpoint.pth").unlink()
    assert {path.name for path in (tmp_path / "results" / "runs").iterdir()} == before
    assert json.loads(call("plan", "my suite.yaml", "--json").stdout)["runs"] == 0
