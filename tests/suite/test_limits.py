"""What a suite may ask for, and how long it takes to say what is wrong with it: nothing grows out of hand."""

import json
import os
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from kdbench.catalogue import text
from kdbench.cli.app import app
from kdbench.errors import PRINTED, BadSuite, Problem
from kdbench.suite.grid import MOST_RUNS
from kdbench.suite.load import load_suites
from kdbench.suite.yaml_reader import read_yaml


HEAD = "protocol: smoke\ndataset: digits\n"
LONG = "a" * 300


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("trials: 1000000000\ngrid: {student: vgg8, method: ce}\n", 3, "1,000,000,000 trials: 1,000,000,000 runs"),
        (
            "trials: 100\ngrid:\n"
            "  teacher: [vgg13, vgg11, vgg16]\n"
            "  student: [vgg8, resnet8, resnet14]\n"
            "  method: [ce, kd]\n"
            f"  scenario: [{', '.join(f'{{fraction: {n / 1000}}}' for n in range(1, 201))}]\n",
            8,
            "9 pairs of networks × 2 methods × 200 scenarios × 100 trials: 360,000 runs up to here",
        ),
        (
            f"grid:\n  student: vgg8\n  method: ce\n  include: {{student: [{', '.join(['vgg8'] * 1000)}], "
            f"teacher: [{', '.join(['vgg13'] * 1000)}]}}\n",
            6,
            "1,000,000 pairs of networks",
        ),
        (
            "trials: 15000\ngrid:\n  - {student: vgg8, method: ce}\n  - {student: vgg8, method: ce}\n",
            3,
            "15,000 trials: 30,000 runs up to here",
        ),
    ],
    ids=["trials", "product", "include", "several grids"],
)
def test_too_many_runs_are_refused_before_they_are_made(load, text, line, words, processor_time_below):
    with processor_time_below(1), pytest.raises(BadSuite, match=f"a command takes {MOST_RUNS:,} at most") as caught:
        load(HEAD + text)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert words in problem.message


def test_too_many_trials_on_the_command_line_and_too_many_suites(tmp_path):
    done = CliRunner().invoke(app, ["plan", "smoke", "--trials", str(10**30)])
    assert isinstance(done.exception, BadSuite)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(HEAD + "trials: 10001\ngrid: {student: vgg8, method: ce}\n")
    with pytest.raises(BadSuite, match=r"20,002 runs with the suites before it"):
        load_suites([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])


def test_thousands_of_mistakes_are_found_in_linear_time_and_not_all_printed(tmp_path, processor_time_below):
    file = tmp_path / "x.yaml"
    grids = [f"- {{x{n}: 1, techer: resnet8, studnet: resnet9, metod: kd}}\n" for n in range(2000)]
    file.write_text(HEAD + "grid:\n" + "".join(grids))
    with processor_time_below(2.5):  # 9 s when each grid looked through the problems of all
        done = CliRunner().invoke(app, ["validate", str(file), "--json"])
    problems = [Problem(**each) for each in json.loads(done.stdout)["problems"]]
    assert len(problems) == 12000
    printed = str(BadSuite(problems))
    assert len(printed.splitlines()) == PRINTED + 2
    assert printed.endswith(
        "… and 11,900 more, of this kind or others: kdbench validate --json lists all.\n12,000 problems. Nothing was run."
    )


def test_the_nearest_of_many_names_is_not_looked_for_again_and_again(load, monkeypatch):
    """Comparing 2,000 wrong names with 4,000 of the suite's own took minutes."""
    compared = []
    monkeypatch.setattr(text, "_closest", lambda name, among: compared.append(len(among)))
    own = "methods:\n" + "".join(f"  own-{n}: {{ce: 1}}\n" for n in range(400))
    wrong = ", ".join(f"wrong-{n}" for n in range(200))
    with pytest.raises(BadSuite) as caught:
        load(HEAD + own + f"grid: {{teacher: vgg13, student: vgg8, method: [{wrong}]}}\n")
    assert (len(caught.value.problems), sorted(compared)) == (200, [0] * (200 - PRINTED) + [300] * PRINTED)


def test_a_thousand_exclusions_of_thousands_of_cells(load, processor_time_below):
    methods = ", ".join(f"m{n}" for n in range(500))
    own = "methods:\n" + "".join(f"  m{n}: {{ce: 1, kd: {n}}}\n" for n in range(500))
    students = "[resnet8, resnet14, resnet20, resnet32, resnet44, resnet56]"
    grid = (
        f"grid: {{teacher: vgg13, student: {students}, method: [{methods}], exclude: [{{student: [{students[1:-1]}]}}, "
    )
    with processor_time_below(4), pytest.raises(BadSuite, match="describes no run"):
        load(HEAD + own + grid + ", ".join(["{teacher: vgg13}"] * 1000) + "]}\n")


@pytest.mark.parametrize("text", ["[" + "1," * 200_000 + "]", "'" + "x" * 3_000_000 + "'", "a: 1\n" + "# \n" * 800_000])
def test_large_files_are_refused_soon(tmp_path, text, processor_time_below):
    (tmp_path / "x.yaml").write_text(text)
    with processor_time_below(1), pytest.raises(BadSuite, match=r"too many values|larger than 2 MB"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"grid: {{student: vgg8, method: {{terms: {{ce: 1, {LONG}: 1}}}}}}", "is not a name"),
        (f"grid: {{student: vgg8, method: {{terms: {{ce: 1, {LONG[:190]}: 1}}}}}}", "unknown term 'aaa"),
        (f"grid: {{student: vgg8, method: {{terms: {{ce: 1, '{'a.' * 90}b:C': 1}}}}}}", "cannot find the module"),
        (f"grid: {{student: vgg8, method: {{name: {LONG}, terms: {{ce: 1}}}}}}", "has 300 letters"),
        (f"name: {LONG}\ngrid: {{student: vgg8, method: ce}}", "has 300 letters"),
        (f"teachers: {{t: {{network: vgg8, weights: {LONG}}}}}\ngrid: {{student: vgg8, method: ce}}", "no such file"),
        (f"teachers: {{{LONG}: {{network: vgg8}}}}\ngrid: {{student: vgg8, method: ce}}", "is not a name"),
        (f"tables: {LONG}\ngrid: {{student: vgg8, method: ce}}", "unknown table"),
        (f"measure: {{probe: {LONG}}}\ngrid: {{student: vgg8, method: ce}}", "unknown dataset"),
        (f"grid: {{student: {LONG}, method: ce}}", "unknown model"),
        (f"grid: {{student: vgg8, method: {LONG[:190]}}}", "unknown method"),
    ],
)
def test_long_names_hide_no_other_problem(load, text, message):
    with pytest.raises(BadSuite) as caught:
        load(f"{HEAD}{text}\nzzz: 1\n")
    first, last = caught.value.problems
    assert message in first.message
    assert len(str(first)) < 600
    assert last.path == "zzz"


def test_a_protocol_of_a_long_name(load):
    with pytest.raises(BadSuite, match=r"unknown protocol 'a+ …a'"):
        load(f"protocol: {LONG}\ndataset: digits\ngrid: {{student: vgg8, method: ce}}\n")


@pytest.mark.parametrize("escape", [r"\0", r"\x1b[31m", r"\x7f", r"\x9b", r"\L"])
def test_what_cannot_be_printed_is_a_problem_of_its_line(load, escape):
    with pytest.raises(BadSuite) as caught:
        load(f'{HEAD}description: "a{escape}"\nteachers: {{"b{escape}": 1}}\ngrid: {{student: vgg8, method: ce}}\n')
    assert [problem.line for problem in caught.value.problems] == [3, 4]
    assert str(caught.value).replace("\n", "").isprintable()


def test_standard_input_and_pipes(tmp_path):
    text = HEAD + "grid: {student: vgg8, method: ce}\n"
    done = CliRunner().invoke(app, ["validate", "-"], input=text)
    assert done.stdout == "standard input: 1 table entries, 1 runs. No problem found.\n"
    pipe = tmp_path / "63"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    (suite,) = load_suites([str(pipe)])
    writer.join()
    assert (suite.name, len(suite.runs)) == ("suite", 1)


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file({"classifier.weight": np.zeros((10, 512), np.float32)}, tmp_path / "plain.pth")
    (tmp_path / "x.yaml").write_text(
        HEAD + "teachers: {t: {network: vgg13, weights: ~/plain.pth}}\ngrid: {teacher: t, student: vgg8, method: kd}\n"
    )
    (suite,) = load_suites(["~/x.yaml"])
    assert list(suite.weight_files.values()) == [tmp_path / "plain.pth"]


def test_a_file_name_that_cannot_be_printed_makes_a_suite_name_that_can(tmp_path):
    file = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.yaml")
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(HEAD + "grid: {student: vgg8, method: ce}\n")
    assert load_suites([file])[0].name == "\N{REPLACEMENT CHARACTER}" * 2
