"""The import path of new processes, and what one of them says of files of weights."""

import ast
import sys
from pathlib import Path

import pytest
import torch

import kdbench
from kdbench.__main__ import _leave_working_folder
from kdbench.child import interpreter
from kdbench.cli.data import list_samples
from kdbench.errors import BadInput
from kdbench.execution.runner import RunOptions, run_suites
from kdbench.models import build
from kdbench.suite.load import load_suite
from kdbench.suite.specs import DatasetSpec, Scenario


HOME = str(Path(kdbench.__file__).parents[1])
LIBRARY = str(Path(sys.modules["os"].__file__).parent)


def path_of(command):
    """The import path with which a command begins."""
    assert command[1:3] == ["-P", "-c"]
    (line,) = [line for line in command[3].splitlines() if line.startswith("sys.path[:] = ")]
    return ast.literal_eval(line.partition(" = ")[2])


def test_it_is_that_of_this_process_without_the_working_folder(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", "/elsewhere", *sys.path])
    assert path_of(interpreter("")) == sys.path[1:]


def test_a_checkout_that_is_not_installed_comes_last(monkeypatch, tmp_path):
    (tmp_path / "kdbench").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), LIBRARY])
    assert path_of(interpreter("")) == [str(tmp_path), LIBRARY, HOME]


def test_another_kdbench_on_the_path_is_refused(monkeypatch, tmp_path):
    (tmp_path / "kdbench").mkdir()
    (tmp_path / "kdbench" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), LIBRARY])
    with pytest.raises(
        BadInput, match=rf"this is the kdbench of {HOME}/kdbench, but Python imports that of {tmp_path}"
    ):
        interpreter("")


@pytest.mark.parametrize(("named", "kept"), [("", 0), (":/other:", 0), ("{here}", 2), (".", 2)])
def test_the_command_leaves_the_working_folder_unless_it_is_named(monkeypatch, tmp_path, named, kept):
    here = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", named.format(here=here))
    monkeypatch.setattr(sys, "argv", ["/bin/kdbench"])
    behind = [LIBRARY, "/site-packages", here]  # an editable install of the folder in which one stands
    monkeypatch.setattr(sys, "path", ["/bin", here, "/other", here, *behind])
    _leave_working_folder()
    assert sys.path.count(here) == 1 + kept
    assert [entry for entry in sys.path if entry != here] == ["/other", *behind[:2]]
    assert sys.path[-3:] == behind


@pytest.mark.slow
def test_nothing_runs_where_a_file_of_weights_is_not_its_networks(tmp_path):
    torch.save(build("resnet14", 10).state_dict(), tmp_path / "net.pth")
    (tmp_path / "own.yaml").write_text(
        "protocol: smoke\ndataset: digits\nteachers: {mine: {network: resnet8, weights: net.pth}}\n"
        "grid: {teacher: mine, student: resnet8, method: kd}\n"
    )
    with pytest.raises(BadInput, match=r"(?s)These are the weights of resnet14.*Nothing was run\."):
        run_suites([load_suite(tmp_path / "own.yaml")], RunOptions(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_samples_of_a_missing_data_set_say_how_to_get_it(tmp_path):
    with pytest.raises(BadInput, match=r"cifar-100-python.*kdbench data download cifar100"):
        list_samples(DatasetSpec(name="cifar100"), Scenario(), 0, tmp_path)
