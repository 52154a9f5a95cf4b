"""The benchmarks measure what they say and write it where it belongs; the kill campaign sees what differs."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kdbench.training.trainer import Trainer


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """load(name): a module of the benchmarks, with those beside it; none stays imported."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("bench", "peer", "reports", "simulate", "steps", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_each_pass_of_a_cohort_trains_all_its_batches(load, monkeypatch):
    steps = load("steps")
    trained = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer, *rest: (trained.append(trainer), step(trainer, *rest))[1])
    setup = steps.Setup(torch.device("cpu"), "resnet8", "resnet8", batch=4, steps=3, repeats=2)
    rows = list(steps.cohorts(setup, (1, 2)))
    names = ["kdbench, 1 run", "kdbench, 2 runs"]
    assert [row["what"] for row in rows][2:] == [*names, *(f"{name}, outputs cached" for name in names)]
    passes = 2 + 1  # with the first, which warms up
    assert len(trained) == passes * 3 * (1 + 2 * (1 + 2))


DOCUMENT = {
    "machine": {
        "device": {"kind": "cpu", "name": "A chip", "threads": 2},
        "versions": {"torch": "2.13.0"},
    },
    "settings": {
        "teacher": "resnet32x4",
        "student": "resnet8x4",
        "batch": 64,
        "steps": 6,
        "repeats": 5,
        "precision": "fp32",
        "quick": False,
    },
    "parts": {
        "methods": {
            "date": "2026-12-01",
            "rows": [
                {"method": name, "ms": ms, "floor": 1.0, "memory_mib": 500.0, "parameters": n, "teacher": teacher}
                for name, ms, n, teacher in (("kd", 1000.0, 0, "resnet32x4"), ("ce", 370.0, 0, "none"))
            ],
        },
        "scale": {"date": "2026-12-02", "rows": [{"what": "kdbench plan", "runs": 10359, "seconds": 1.234}]},
    },
}


def test_tables_replace_those_that_were_measured_and_no_others(load):
    tables, bench = load("tables"), load("bench")
    before = (BENCHMARKS / "README.md").read_text()
    assert all(before.count(f"<!-- {part} -->\n") == 1 for part in bench.PARTS)
    text = tables.write_tables(before, DOCUMENT)
    assert "| kd | 1,000.0 | 1.00 | 500 | 0 |  |\n| ce | 370.0 | 1.00 | 500 | 0 | no teacher |\n\n<!-- end -->" in text
    assert "A chip, 2 threads, torch 2.13.0; 2026-12-02; medians of 5.\n\n|  | runs | seconds |\n" in text
    assert "| kdbench plan | 10,359 | 1.23 |" in text
    assert tables.write_tables(text, DOCUMENT) == text
    unmeasured = before.partition("<!-- streams -->")[2].partition("<!-- scale -->")[0]
    assert unmeasured in text
    with pytest.raises(ValueError, match="one line <!-- methods -->"):
        tables.write_tables("", DOCUMENT)


def test_costs_are_written_when_all_methods_were_measured(load):
    tables = load("tables")
    assert tables.costs_yaml(DOCUMENT) == ""
    costs = yaml.safe_load(tables.costs_yaml(DOCUMENT, whole=False))
    assert costs["machine"] == "A chip, 2 threads, torch 2.13.0"
    assert costs["methods"]["ce"] == {"time": 0.37, "memory": 1.0, "parameters": 0, "teacher": "none"}
    known = yaml.safe_load((BENCHMARKS.parent / "kdbench" / "catalogue" / "costs.yaml").read_text())
    assert known.keys() == costs.keys()
    assert set(known["methods"]) == set(tables.method_names())


def test_what_was_measured_elsewhere_or_otherwise_is_not_mixed_in(load, tmp_path):
    document = load("bench")._document
    file = tmp_path / "bench.json"
    settings, machine = DOCUMENT["settings"], DOCUMENT["machine"]
    assert document(file, settings, {**machine}) == {"machine": machine, "settings": settings, "parts": {}}
    file.write_text(json.dumps(DOCUMENT))
    assert document(file, settings, {**machine, "peak_memory": 5}) == DOCUMENT
    assert document(file, {**settings, "batch": 4}, {**machine})["parts"] == {}
    assert document(file, settings, {**machine, "versions": {"torch": "2.14"}})["parts"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "kd", "atk"], "--methods: 'atk' is not one of kd, ce, "),
        (["--methods", "at"], "kd is missing"),
        (["--peer", "."], "--peer .: is no checkout of RepDistiller"),
        (["--tables", "--output", "none.json"], "none.json is not there: measure first (make bench)"),
    ],
)
def test_what_cannot_be_measured_is_refused(load, monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    with pytest.raises(SystemExit, match="2"):
        load("bench").main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_are_tried_within_a_minute(load, monkeypatch, tmp_path, processor_time_below):
    bench = load("bench")
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--output", str(tmp_path / "bench.json")])
    with processor_time_below(60):
        bench.main()
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [*document["parts"]] == [part for part in bench.PARTS if part != "peer"]
    text = load("tables").write_tables((BENCHMARKS / "README.md").read_text(), document)
    assert text.count("the numbers mean nothing") == len(document["parts"])


PEER = """
import sys
from crd.memory import AliasMethod
model_dict = {name: (lambda num_classes, name=name: name) for name in ("resnet8", "resnet20")}
def load_teacher(path, classes):
    raise AssertionError
get_cifar100_dataloaders = get_cifar100_dataloaders_sample = validate = load_teacher
def train(epoch, loader, *rest):
    assert len(loader) == 3 and len(loader[0]) == (4 if "crd" in sys.argv else 3)
def main():
    AliasMethod().cuda()
    load = get_cifar100_dataloaders_sample if "crd" in sys.argv else get_cifar100_dataloaders
    assert load_teacher(sys.argv[-1], 100) == "resnet20"
    for epoch in (1, 2):
        train(epoch, load(batch_size=4)[0])
        validate()
    print("best accuracy", 0)
"""


def test_the_peers_own_loop_is_timed_on_batches_that_lie_ready(load, monkeypatch, tmp_path, capsys):
    (tmp_path / "train_student.py").write_text(PEER)
    (tmp_path / "crd").mkdir()
    (tmp_path / "crd" / "memory.py").write_text("class AliasMethod:\n    def cuda(self):\n        raise AssertionError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("tensorboard_logger", "train_student", "crd", "crd.memory"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    options = "--teacher resnet20 --student resnet8 --batch 4 --steps 3"
    monkeypatch.setattr(sys, "argv", ["peer.py", str(tmp_path), "kd", "crd", *options.split()])
    load("peer").main()
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"kd", "crd"}
    assert all(0 <= ms < 1000 for ms in found.values())


def test_the_kill_campaign_sees_what_differs_is_missing_or_left_over():
    compare = runpy.run_path(str(BENCHMARKS / "kill.py"))["compare"]
    expected = {"runs/a/spec.json": b"1", "runs/b/spec.json": b"2"}
    assert compare(expected, expected, []) == []
    found = {"runs/a/spec.json": b"0", "runs/a/state.pt": b"", "runs/b.damaged-1/spec.json": b"", "logs/x.log": b""}
    faults = ["more: logs/x.log", "more: runs/a/state.pt", "missing: runs/b/spec.json", "differs: runs/a/spec.json"]
    assert compare(found, expected, ["runs/b/spec.json"]) == faults
    assert compare(found, expected, ["teachers/b/spec.json"]) == [
        *faults[:2],
        "more: runs/b.damaged-1/spec.json",
        *faults[2:],
    ]


def test_the_simulation_compares_with_the_ideal_and_with_the_longest_chain(load):
    simulate = load("simulate")
    suites = simulate.load_suites(["demo"])
    plan = simulate.make_plan(simulate.run_specs(suites), simulate.NOWHERE)
    one, many = simulate.play_on(plan, (1, 64), simulate.choose([], "cpu"), simulate.Conditions())
    assert (one["efficiency"], one["bound"], one["work lost"]) == ("100.0%", "100.0%", "0.00%")
    assert 0 < float(many["efficiency"][:-1]) <= float(many["bound"][:-1]) < 50


def test_so_many_runs_are_planned_and_played(load):
    simulate = load("simulate")
    row = simulate.large(200, 8)
    assert (row["runs"], row["devices"]) == ("200", "8")
    assert int(row["jobs"]) >= 8
