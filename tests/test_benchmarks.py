"""The benchmark of a step measures as many steps as it says; the kill campaign sees what differs."""

import runpy
import sys
from pathlib import Path

from kdbench.training.trainer import Trainer


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_repeat_of_step_trains_all_its_batches(monkeypatch, capsys):
    steps = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda learner, *rest: (steps.append(learner), step(learner, *rest))[1])
    options = "--teacher resnet8 --student resnet8 --device cpu --batch 4 --steps 3 --repeats 2 --runs 2"
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["step.py", *options.split()])
    runpy.run_path(str(BENCHMARKS / "step.py"), run_name="__main__")
    assert "kdbench, 2 runs" in capsys.readouterr().out
    passes = 2 + 1  # with the first, which warms up
    assert len(steps) == passes * 3 * (1 + 2)


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


def test_the_structure_of_a_checkout(tmp_path, capsys):
    describe = runpy.run_path(str(BENCHMARKS / "structure.py"))["describe"]
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    for name, text in {"a": "import package.deep.b\n", "deep/b": "from package import c\n", "c": "\nimport package.a\n",
                       "d": "def f():\n    import package.a\n\n"}.items():  # fmt: skip
        (package / f"{name}.py").write_text(text)
    describe(tmp_path, "package")
    assert capsys.readouterr().out.splitlines() == [
        "package: 4 modules, 7 lines, 1 import circles",
        "  circle: package.a ↔ package.c ↔ package.deep.b",
        "  largest file: package/d.py (3 lines)",
        "  largest folder: package (3 modules)",
        "  package                    3 modules      6 lines",
        "  package/deep               1 modules      1 lines",
    ]
