"""kdbench data samples: lists for others, of a scenario or of a run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from kdbench import child
from kdbench.__main__ import main
from kdbench.cli.data import list_samples
from kdbench.data.stream import DataSource
from kdbench.errors import BadInput, KdbenchError
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, Recipe, RunSpec, Scenario, WeightedTerm


OPTIONS = ("--train-per-class", 10, "--classes", 3, "--fraction", 0.5, "--label-noise", 0.4, "--trial", 1)
SPEC = RunSpec(
    student="resnet8",
    terms=(WeightedTerm(name="ce"),),
    dataset=DatasetSpec(name="digits", classes=3, train_per_class=10),
    scenario=Scenario(fraction=0.5, label_noise=0.4),
    recipe=Recipe(epochs=1, batch=8, lr=0.1),
    trial=1,
)


def head(text, key):
    (line,) = [line for line in text.splitlines() if line.startswith(f"# {key}")]
    return line.rpartition(": ")[2]


def store_run(root, sha256):
    record, accuracy = Store(root).run(SPEC.id), Accuracy(epoch=1, top1=1.0, top5=1.0)
    record.begin(SPEC.canonical())
    result = Result(
        id=SPEC.id,
        kind="run",
        last=accuracy,
        best=accuracy,
        changed_labels=6,
        samples_sha256=sha256,
        weights_sha256="0",
    )
    record.finish(result, {})


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run ``kdbench`` in this process, in an empty folder; gives exit code, standard output and standard error."""
    for name in ("KDBENCH_DATA", "KDBENCH_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return call


@pytest.mark.slow
def test_a_list_of_a_scenario_and_the_same_of_a_run(here, monkeypatch, tmp_path):
    code, listed, err = here("data", "samples", "Digits", *OPTIONS)
    assert (code, err) == (0, "")
    lines = listed.splitlines()
    rows = [line.split(",") for line in lines if line[0].isdigit()]
    assert lines[-len(rows) - 1] == "index,true_label,given_label"
    assert [sum(row[1] == str(label) for row in rows) for label in range(3)] == [5, 5, 5]
    assert [sum(row[1] == str(label) != row[2] for row in rows) for label in range(3)] == [2, 2, 2]
    sha256 = DataSource(tmp_path, torch.device("cpu")).samples(SPEC.dataset, SPEC.scenario, SPEC.trial).sha256
    assert head(listed, "sha256") == sha256  # which another process has drawn
    store_run(tmp_path / "results", sha256)
    requests = []
    monkeypatch.setattr("kdbench.cli.data.list_samples", lambda *request: requests.append(request) or listed)
    code, out, err = here("data", "samples", "--run", SPEC.id[:6], "-o", "new/list.csv")
    assert (code, out, err) == (0, "", "new/list.csv holds 15 samples.\n")
    assert requests == [(SPEC.dataset, SPEC.scenario, SPEC.trial, Path("data"))]
    assert (tmp_path / "new" / "list.csv").read_text() == listed
    shown = here("show", SPEC.id)[1]
    assert '"changed_labels": 6' in shown
    assert sha256 in shown


@pytest.fixture
def drawn(monkeypatch):
    """Nothing is drawn; the list has one line."""
    monkeypatch.setattr("kdbench.cli.data.list_samples", lambda *request: f"# sha256: {'1' * 64}\n7,0,0\n")


def test_a_run_that_learned_from_another_list(here, drawn, tmp_path):
    store_run(tmp_path / "results", "0" * 64)
    code, out, err = here("data", "samples", "--run", SPEC.id, "-o", "list.csv")
    assert (code, out) == (1, "")
    assert f"run {SPEC.id} learned from another list (sha256 {'0' * 64})" in err
    assert not (tmp_path / "list.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a data set (kdbench list datasets), or a run with --run ID"),
        (("digitz",), "DATASET: unknown dataset 'digitz'. Did you mean 'digits'?"),
        (("digits", "--label-noise", 1.0), "--label-noise: must be less than 1, not 1.0"),
        (("digits", "--fraction", 0.0, "--noise", "al"), "--fraction: must be greater than 0, not 0.0\n--noise: 'al'"),
        (("digits", "--noise", "all"), "noise 'all' needs a label_noise above 0"),
        (("digits", "--val-split", 0.1, "--train-per-class", 91), "--train-per-class: digits has only 90 train per"),
        (("cifar100",), "let kdbench fetch it: kdbench data download cifar100"),
        (
            ("--run", "abcd"),
            "no run's id in results begins with 'abcd' (four digits or more)",
        ),
        (("digits", "--run", "abcd"), "--run ID says it all"),
        (("--fraction", 0.5, "--run", "abcd"), "--run ID says it all"),
    ],
)
def test_what_cannot_be_listed(here, tmp_path, arguments, message):
    code, out, err = here("data", "samples", *arguments, "-o", "list.csv")
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_and_a_damaged_run(here, drawn, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = here("data", "samples", "digits", "-o", "taken/list.csv")
    assert code == 2
    assert err.startswith("--output taken/list.csv: cannot be written: ")
    store_run(tmp_path / "results", "1" * 64)
    assert here("data", "samples", "--run", SPEC.id)[1].endswith("7,0,0\n")
    (Store(tmp_path / "results").run(SPEC.id).folder / "spec.json").write_text(json.dumps({"student": 5}))
    code, _, err = here("data", "samples", "--run", SPEC.id)
    assert code == 2
    assert "is damaged: kdbench show" in err


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("import sys; sys.exit('no module called torch')", KdbenchError, "^the list cannot be drawn: no module called"),
        ("import sys; print('digits: none', file=sys.stderr); sys.exit(2)", BadInput, "^digits: none$"),
        ("import os; os._exit(9)", KdbenchError, "^the list cannot be drawn: exit code 9$"),
    ],
)
def test_a_process_that_fails(monkeypatch, tmp_path, program, kind, message):
    monkeypatch.setattr(child, "interpreter", lambda code: [sys.executable, "-c", program])
    with pytest.raises(kind, match=message):
        list_samples(SPEC.dataset, SPEC.scenario, 0, tmp_path)
