"""kdbench run --tiny: a suite of the papers' end to end, with no data and no weights at hand."""

import csv
import io
import runpy
import sys
from pathlib import Path

import pytest


CHECK = Path(__file__).parents[2] / ".ci" / "tables.py"


@pytest.fixture
def check(monkeypatch, capsys):
    """What `make tiny` says of results: exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(CHECK), "--tiny", *map(str, arguments)])
        try:
            runpy.run_path(str(CHECK), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def own(tmp_path):
    """A part of SSKD's Table 6, small enough for a test, with a measurement on STL-10."""
    file = tmp_path / "own.yaml"
    file.write_text("""\
tables: [sskd-6]
protocol: sskd
dataset: cifar100
grid:
  - teacher: vgg13
    student: vgg8
    method: [kd, sp]
    measure: {similarity: stl10}
""")
    return file


@pytest.mark.slow
def test_a_paper_table_is_filled_from_nothing_and_compared_with_nothing(kdbench, one_process, own, check, tmp_path):
    done = kdbench("run", own, "--tiny", "--devices", "cpu", "--jobs-per-device", 1, "--data", tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert "mean nothing" in done.stdout
    assert "protocol tiny sskd" in done.stdout
    assert " | " not in done.stdout
    assert "Behind the bar" not in done.stdout
    assert "not part of this suite" in done.stdout
    table = kdbench("report", own, "--tiny", "--table", "sskd-6", "-f", "csv")
    facts = list(csv.DictReader(io.StringIO(table.stdout)))
    assert {fact["paper"] for fact in facts} == {"tiny sskd"}
    assert all(fact["value"] for fact in facts if fact["metric"] in ("top1", "kl", "cka"))
    assert not (tmp_path / "empty").exists()
    code, out, err = check(tmp_path / "results", own)
    assert (code, err) == (0, "")
    assert out.startswith("own: 2 of 2 runs, 2 measurements, 10 cells filled, ")
    assert len(out.splitlines()) == 1
    assert "0 runs to do" in kdbench("plan", own, "--tiny").stdout
    assert "2 runs to do" in kdbench("plan", own, "--trials", 1).stdout


@pytest.mark.parametrize("view", ["difference", "verdict", "published"])
def test_tiny_numbers_are_compared_with_none(kdbench, own, view):
    done = kdbench("report", own, "--tiny", "--view", view)
    assert done.returncode == 2
    assert "compared with none" in done.stderr


def test_what_lacks_is_named_and_fails(own, check, tmp_path):
    code, out, _ = check(tmp_path / "nothing", own)
    assert code == 1
    assert out.startswith("own: 0 of 2 runs")
    assert "WRONG" in out
    assert "not run" in out
