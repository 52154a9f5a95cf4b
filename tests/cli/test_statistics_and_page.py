"""kdbench report --statistics, --baseline, --bold and --format html."""

import json

import pytest


@pytest.fixture
def several(tmp_path, suite_file):
    """Results of a suite with two trials of three methods, all done."""
    from kdbench.store.result import Accuracy, Result
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suite

    suite_file.write_text(suite_file.read_text().replace("trials: 1", "trials: 2").replace("[ce, kd]", "[ce, kd, at]"))
    values = {"ce": [40.0, 40.1], "kd": [50.0, 50.3], "at": [50.0, 50.2]}
    for run in load_suite(suite_file).runs:
        record = Store(tmp_path / "results").run(run.id)
        accuracy = Accuracy(epoch=2, top1=values[run.method][run.spec.trial], top5=90.0)
        record.begin(run.spec.canonical())
        record.write_metrics(
            [{"epoch": 1, "loss": 2.0, "top1": 30.0}, {"epoch": 2, "loss": 1.0, "top1": accuracy.top1}]
        )
        record.finish(
            Result(id=run.id, kind="run", last=accuracy, best=accuracy, weights_sha256=""),
            {"versions": {"kdbench": "0.1"}},
        )
    return suite_file


def test_statistics_in_every_format_for_readers(kdbench, several):
    for format in ("terminal", "markdown", "latex", "html"):
        text = kdbench("report", several, "--statistics", "-f", format).stdout
        assert "against kd on each pair" in text
        assert "-10.10 ± 0.14 (2), p 0.013" in text.replace("{", "").replace("}", "").replace("$\\pm$", "±")
    assert "against kd" not in kdbench("report", several).stdout


def test_statistics_as_json(kdbench, several):
    (found,) = json.loads(kdbench("report", several, "--statistics", "-f", "json").stdout)["statistics"]
    assert (found["suite"], found["baseline"]) == ("own", "kd")
    ce, at = found["trials"]
    assert (ce["method"], ce["n"], ce["teacher"]) == ("ce", 2, "resnet8x4")
    assert ce["mean"] == pytest.approx(-10.1)
    assert 0 < ce["p"] < ce["p_holm"] < 0.02 < at["p"]
    assert found["pairs"][0]["why"] == "too few pairs"
    assert found["ranking"]["ranks"] == {"ce": 3.0, "kd": 1.0, "at": 2.0}
    assert "statistics" not in json.loads(kdbench("report", several, "-f", "json").stdout)


def test_another_baseline(kdbench, several):
    assert "against at on each pair" in kdbench("report", several, "--baseline", "at").stdout
    done = kdbench("report", several, "--statistics", "--baseline", "kdd")
    assert done.returncode == 2
    assert "no table has the method 'kdd'. Did you mean 'kd'?" in done.stderr


def test_bold_for_all_that_is_not_separable(kdbench, several):
    def bold(*options):
        lines = kdbench("report", several, "-f", "markdown", *options).stdout.splitlines()
        return [line.split()[1] for line in lines if line.startswith("|") and "**" in line]

    assert bold() == ["kd"]
    assert bold("--bold", "separable") == ["kd", "at"]
    assert "(paired t-test, α = 0.05, Holm per column)" in kdbench("report", several, "--bold", "separable").stdout


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--statistics", "-f", "csv"], "its numbers are in --format json"),
        (["--bold", "all"], "--bold"),
        (["--published", "--statistics"], "--published prints the papers' numbers alone"),
    ],
)
def test_options_that_do_not_go_together(kdbench, options, word):
    done = kdbench("report", *options)
    assert done.returncode == 2
    assert word in done.stderr


def test_html_to_a_file(kdbench, several, tmp_path):
    done = kdbench(
        "report",
        several,
        "-f",
        "html",
        "-o",
        "out/report.html",
        "--only",
        "method=kd,at",
        "--bold",
        "separable",
        "--mix-versions",
    )
    assert (done.returncode, done.stdout) == (0, "")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"kdbench run {several} --only method=kd,at\n" in text
    assert "--only method=kd,at -f html --bold separable --mix-versions -o report.html" in text
    assert text.rstrip().endswith("</html>")


def test_html_of_the_printed_tables(kdbench):
    text = kdbench("report", "--published", "--table", "sskd-3", "-f", "html").stdout
    assert "76.04" in text
    assert "kdbench report -f html --published --table sskd-3 -o report.html" in text
