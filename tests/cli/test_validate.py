"""kdbench validate: every problem at once, exit code 2."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file


FIVE = """\
protocol: crd
dataset: cifar100
trials: 3e0
grid:
  - teacher: resnet32x4
    student:
      - resnet8x4
      - resnet8x5
    method:
      - kdd
      - terms: {ce: 1, kd: {temprature: 4}}
    strategi: pretrained
"""


@pytest.fixture
def five(tmp_path):
    (tmp_path / "five.yaml").write_text(FIVE)
    return "five.yaml"


def test_five_mistakes_are_all_named_with_their_lines(kdbench, five):
    done = kdbench("validate", five)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines[:-1]] == [f"five.yaml:{n}" for n in (3, 8, 10, 11, 12)]
    assert lines[-1] == "5 problems. Nothing was run."
    assert lines[1] == (
        "five.yaml:8  grid[0].student[1]: unknown model 'resnet8x5'. Did you mean 'resnet8x4'?  (kdbench list models)"
    )


def test_json(kdbench, five, suite_file):
    done = kdbench("validate", five, "nothing", "--json")
    assert done.returncode == 2
    problems = json.loads(done.stdout)["problems"]
    assert [problem["line"] for problem in problems] == [3, 8, 10, 11, 12, 0]
    assert set(problems[0]) == {"file", "line", "path", "message"}
    assert json.loads(kdbench("validate", suite_file, "--json").stdout) == {"problems": []}


def test_good_files_and_bundled_names(kdbench, suite_file):
    done = kdbench("validate", suite_file, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 table entries, 2 runs. No problem found." in done.stdout


@pytest.mark.parametrize("command", ["validate", "plan", "report", "run"])
def test_unknown_suites(kdbench, command):
    for reference, word in (("dmo", "Did you mean 'demo'?"), ("no/such.yaml", "no such file"), (".", "is a folder")):
        done = kdbench(command, reference)
        assert done.returncode == 2
        assert word in done.stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a: [", b"\x00", b"- 1", b"[" * 5000])
def test_files_that_are_no_suites(kdbench, tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    done = kdbench("validate", "x.yaml")
    assert done.returncode == 2
    assert "1 problem. Nothing was run." in done.stderr


def test_a_terminal_without_unicode(kdbench_process, tmp_path, suite_file):
    (tmp_path / "x.yaml").write_text("protocol: crd\ngrid: [5]\n")
    assert "teacher: ?" in kdbench_process("validate", "x.yaml", PYTHONIOENCODING="ascii").stderr
    assert kdbench_process("report", suite_file, PYTHONIOENCODING="latin-1").returncode == 0


@pytest.mark.parametrize(
    ("format", "environment"),
    [("html", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}), ("markdown", {"LC_ALL": "C", "PYTHONUTF8": "0"})],
)
def test_programs_get_utf8_whatever_the_terminal_has(kdbench_process, tmp_path, format, environment):
    save_file({"classifier.weight": np.zeros((10, 512), np.float32)}, tmp_path / "é.pth")
    (tmp_path / "ä.yaml").write_text(
        "protocol: smoke\ndataset: digits\nteachers: {蒸留: {network: vgg13, weights: é.pth}}\n"
        "grid: {teacher: 蒸留, student: vgg8, method: {name: кд·α→β, terms: {ce: 1, kd: 2}}}\n",
        encoding="utf-8",
    )
    done = kdbench_process("report", "ä.yaml", "-f", format, **environment)
    assert done.returncode == 0
    assert "кд·α→β" in done.stdout
    assert "蒸留" in done.stdout
