"""The commands that need no torch do not import it, and answer at once."""

import json
import os
import resource
import subprocess
import sys

import pytest

from kdbench.cli.app import COMMANDS as SUMMARIES
from kdbench.suite.load import bundled_suites


DEMO = str(bundled_suites()["demo"])
HEAVY = {"torch", "torchvision", "numpy", "pandas", "sklearn", "scipy", "open_clip", "matplotlib"}
COMMANDS = [["--help"], ["plan", DEMO], ["validate", DEMO], ["list", "methods"], ["show", "kd"]]


ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from kdbench.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["kdbench", *command]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([command, code, [*{name.partition(".")[0] for name in sys.modules}]]))
"""


def test_nothing_heavy_is_imported(tmp_path):
    """By commands of one process; only the last one, the report, may import numpy and pandas."""
    program = [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps([*COMMANDS, ["report", DEMO]])]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=True)
    for command, code, imported in map(json.loads, done.stdout.splitlines()):
        allowed = {"numpy", "pandas"} if command[0] == "report" else set()
        assert (code, HEAVY.intersection(imported) - allowed) == (0, set()), command
        assert "typer" in imported
    assert command[0] == "report"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder for compiled modules, so that they are kept, as where kdbench is installed."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize(("command", "limit", "times"), [(["plan", DEMO], 0.6, 7), (["--help"], 0.35, 4)])
def test_the_answer_comes_at_once(command, limit, times, tmp_path, compiled):
    """In time of the processor, since the machine may be busy; on a slower one in so many ``times`` that of two imports."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}

    def spent(arguments, enough=0.0):
        seconds = []
        for _ in range(4):  # the first one compiles
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, cwd=tmp_path, check=True)
            seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
            if seconds[-1] < enough:
                break
        return min(seconds)

    seconds = spent(["-m", "kdbench", *command], enough=limit)
    assert seconds < limit or seconds < times * spent(["-c", "import typer, pydantic"])


def test_help_of_every_command_and_no_command(kdbench):
    for command in ("run", "plan", "report", "validate", "list", "show", "doctor"):
        assert kdbench(command, "--help").returncode == 0
    assert "kdbench 0." in kdbench("--version").stdout
    assert kdbench("nonsense").returncode == 2
    assert "Usage" in kdbench().stdout + kdbench().stderr


def test_the_help_lists_each_command_as_its_own_help_begins(kdbench):
    overview = " ".join(kdbench("--help").stdout.split())
    for name, (_, summary) in SUMMARIES.items():
        assert summary in overview
        assert summary.removesuffix(".") in " ".join(kdbench(name, "--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["comapre"], "No such command 'comapre'. Did you mean 'compare'?"),
        (["data", "statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["list", "modells"], "'runs'. Did you mean 'models'?"),
        (["report", "--format", "htlm"], "'html'. Did you mean 'html'?"),
    ],
)
def test_a_mistyped_word_gets_the_nearest_right_one(kdbench, arguments, hint):
    done = kdbench(*arguments)
    assert done.returncode == 2
    assert hint in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("te", ["teachers"]),
        ("run dem", ["demo"]),
        ("report --format ht", ["html"]),
        ("report --table ega-1", ["ega-1"]),
        ("run demo --only meth", ["method="]),
        ("run demo --only method=rk", ["method=rkd"]),
        ("run demo --only trial=", []),
        ("teachers import f.pth --network resnet8x4-d", ["resnet8x4-double"]),
        ("data status cifar100", ["cifar100"]),
        ("show semckd_se", ["semckd_semantics"]),
        ("report demo --baseline rk", ["rkd"]),
    ],
)
def test_a_shell_completes(kdbench, monkeypatch, typed, completed):
    monkeypatch.setenv("_KDBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"kdbench {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert kdbench().stdout.split() == completed


def test_a_shell_completes_suite_files(kdbench, tmp_path, monkeypatch, suite_file):
    test_a_shell_completes(kdbench, monkeypatch, "validate ow", [suite_file.name])
