"""The benchmark of a step runs, and measures as many steps as it says."""

import runpy
import sys
from pathlib import Path

from kdbench.training.learner import Learner


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_repeat_of_step_trains_all_its_batches(monkeypatch, capsys):
    steps = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda learner, *rest: (steps.append(learner), step(learner, *rest))[1])
    options = "--teacher resnet8 --student resnet8 --device cpu --batch 4 --steps 3 --repeats 2 --runs 2"
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["step.py", *options.split()])
    runpy.run_path(str(BENCHMARKS / "step.py"), run_name="__main__")
    assert "kdbench, 2 runs" in capsys.readouterr().out
    passes = 2 + 1  # with the first, which warms up
    assert len(steps) == passes * 3 * (1 + 2)
