"""kdbench init: what it writes works as it is, and it overwrites nothing."""

import shlex
import subprocess
import sys

import pytest

from kdbench.suite.load import load_suite


def test_the_suite_is_valid_and_names_its_own_loss(kdbench, tmp_path):
    done = kdbench("init", "my folder/mine")
    assert done.returncode == 0
    *_, validate, run, report, test = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [each[:2] for each in (validate, run, report)] == [["kdbench", w] for w in ("validate", "run", "report")]
    assert test[:3] == ["python", "-m", "pytest"]
    assert "6 runs. No problem found" in kdbench(*validate[1:]).stdout
    suite = load_suite(tmp_path / "my folder" / "mine" / "mine.yaml")
    assert suite.name == "mine"
    assert {run.method for run in suite.runs} == {"ce", "kd", "mine"}
    assert run[2] in suite.text


@pytest.mark.slow
def test_it_runs_and_its_test_passes(kdbench, kdbench_process, tmp_path):
    kdbench("init", "mine")
    short = ["epochs=1", "milestones=[]", "teacher.epochs=1", "teacher.milestones=[]"]
    settings = [text for setting in short for text in ("--set", f"protocol.{setting}")]
    options = ["--trials", 1, "--devices", "cpu", "--jobs-per-device", 1, *settings]
    done = kdbench_process("run", "mine/mine.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "mine/test_losses.py"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "1 passed" in tested.stdout, tested.stdout


@pytest.mark.parametrize("name", ["there", "link", "file/below", "", "..", "x" * 201])
def test_what_is_there_is_kept_and_what_is_no_name_is_refused(kdbench, tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    done = kdbench("init", name)
    assert done.returncode == 2
    assert not list((tmp_path / "there").iterdir())
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "there"]
