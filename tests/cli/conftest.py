import os
import subprocess
import sys

import pytest


@pytest.fixture
def kdbench(tmp_path):
    """Run the command line in a process of its own, in an empty folder. Asserts that no traceback is printed."""

    def call(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KDBENCH")} | {"COLUMNS": "200"} | environment
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, arguments)],
            capture_output=True, text=True, encoding="utf-8", errors="replace", cwd=tmp_path, env=clean, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.fixture
def suite_file(tmp_path):
    """A suite file with two runs."""
    file = tmp_path / "own.yaml"
    file.write_text("""\
protocol: smoke
dataset: digits
trials: 1
grid:
  - teacher: resnet8x4
    student: resnet8
    method: [ce, kd]
""")
    return file


@pytest.fixture
def finished(tmp_path, suite_file):
    """A results folder in which the suite's first run is done, with spec, curve and result."""
    from kdbench.store.record import Accuracy, Result
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suite

    store = Store(tmp_path / "results")
    for run in load_suite(suite_file).runs[:1]:
        record, accuracy = store.run(run.id), Accuracy(epoch=2, top1=43.21, top5=90.0)
        record.begin(run.spec.canonical())
        record.write_metrics([{"epoch": 1, "loss": 2.5, "terms": {"ce": 2.5}}, {"epoch": 2, "loss": 2.0, "terms": 5}])
        result = Result(
            id=record.id, kind="run", last=accuracy, best=accuracy, train_images=1, test_images=1, weights_sha256=""
        )
        record.finish(result, {"versions": {"kdbench": "0.1"}})
    return record
