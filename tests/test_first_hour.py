"""The frame of benchmarks/first_hour.sh: what has passed is not repeated, each end of a step is stored, a page shows all."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def first_hour(monkeypatch):
    """The module of the steps; `hour` is its frame."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("first_hour", "hour", "tables", "steps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("first_hour")


@pytest.fixture
def frame(first_hour, tmp_path, monkeypatch):
    """frame(arguments) with steps of its own: one for each way to end."""
    hour = sys.modules["hour"]

    def good(hour):
        """All is well."""
        hour.rows = [{"a": 1.23456, "b": "x|y"}, {"a": None, "b": "z"}, {"c": 5}]

    def bad(hour):
        """Nothing holds."""
        hour.expect(False, "one thing")
        hour.expect(False, "another thing")

    def broken(hour):
        """It raises."""
        raise OSError("no such disk")

    def other(hour):
        """It needs a GPU."""
        hour.gpu_only("kernels")

    monkeypatch.setattr(hour, "STEPS", {act.__name__: act for act in (good, bad, broken, other)})
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("TINY", "1")
    return lambda *arguments: hour.main([*arguments])


def test_every_end_of_a_step_is_stored_and_only_failures_are_tried_again(frame, tmp_path, capsys):
    frame("todo")
    names = capsys.readouterr().out.split()
    assert names == ["good", "bad", "broken", "other"]
    assert [frame("run", name) for name in names] == [0] * 4
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert [each["status"] for each in found.values()] == ["passed", "failed", "failed", "left out"]
    assert found["bad"]["wrong"] == ["one thing", "another thing"]
    assert "OSError: no such disk" in found["broken"]["wrong"][0]
    assert (found["good"]["device"], found["good"]["tiny"]) == ("cpu", True)
    capsys.readouterr()
    frame("todo")
    assert capsys.readouterr().out == "bad broken\n"
    assert frame("run", "nothing") == 2
    assert "a step is one of good, bad" in capsys.readouterr().err


def test_the_page_shows_each_step_with_its_rows_and_what_is_wrong(frame, tmp_path):
    frame("run", "good")
    assert frame("page") == 0
    frame("ended", "bad", "124")
    assert frame("page") == 1
    text = (tmp_path / "page.md").read_text()
    assert "| good | passed |" in text
    assert "## good: passed\n\nAll is well.\n\n| a | b |\n| --- | --- |\n| 1.235 | x\\|y |\n|  | z |\n\n| c |\n" in text
    assert "## bad: failed\n\nNothing holds.\n\n```\nit took too long\n```\n" in text
    assert "broken" not in text


def test_a_step_that_has_passed_starts_anew_when_it_is_named(frame, tmp_path):
    mine, foreign = tmp_path / "good-cpu", tmp_path / "goods"
    for folder in (mine, foreign):
        folder.mkdir()
    frame("run", "good")
    assert mine.exists()
    frame("run", "good")
    assert not mine.exists()
    assert foreign.exists()


def test_losses_of_two_folders_are_compared_run_by_run(first_hour, tmp_path):
    from kdbench.store.store import Store

    losses = {"a": (2.0, 2.001), "b": (1.0, 1.5), "c": (3.0, None)}
    for id, pair in losses.items():
        for name, loss in zip(("one", "two"), pair, strict=True):
            record = Store(tmp_path / name).run(id)
            record.folder.mkdir(parents=True)
            if loss is not None:
                record.write_metrics([{"epoch": 1, "loss": loss, "terms": {"ce": 1, "kd": 2}}, {"epoch": 2, "loss": 9}])
    rows = first_hour.loss_differences(tmp_path / "one", tmp_path / "two")
    assert [(row["run"], row["terms"]) for row in rows] == [("b", "ce + kd"), ("a", "ce + kd")]
    assert [row["difference"] for row in rows] == pytest.approx([0.5, 0.0005])


PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$OUT/calls"
case "$2 $3" in
  "todo ") echo quick slow dead ;;
  "run slow") exec sleep 30 ;;
  "run dead") exit 3 ;;
  "page ") exit 1 ;;
esac
"""


def test_the_script_limits_each_step_and_goes_on(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    out = tmp_path / "out"
    settings = {"PYTHON": str(python), "OUT": str(out), "DEVICE": "cpu", "LIMIT": "0.5"}
    done = subprocess.run([str(BENCHMARKS / "first_hour.sh")], env={**os.environ, **settings}, check=False)
    assert done.returncode == 1
    program = "benchmarks/first_hour.py"
    calls = ["todo", "run quick", "run slow", "ended slow 124", "run dead", "ended dead 3", "page"]
    assert (out / "calls").read_text().splitlines() == [f"{program} {call}" for call in calls]
