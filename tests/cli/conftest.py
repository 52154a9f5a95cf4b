import gc
import io
import json
import os
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial

import pytest
import torch

from kdbench import child
from kdbench.__main__ import main
from kdbench.execution import devices, runner
from kdbench.execution.pool import Pool
from kdbench.training import worker


@pytest.fixture
def kdbench(tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder, without a GPU. Asserts that no traceback is printed."""
    machine = devices.Machine(threads=2, trouble="Torch not compiled with CUDA enabled", absent=True)

    def call(*arguments):
        command = ["kdbench", *map(str, arguments)]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", command)
            patch.setattr(devices, "query_devices", lambda **_: machine)
            patch.setenv("COLUMNS", "200")
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            for name in [name for name in os.environ if name.startswith("KDBENCH")]:
                patch.delenv(name)
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
            finally:
                gc.enable()  # which a report switches off
        out, err = (stream.buffer.getvalue().decode(stream.encoding) for stream in (out, err))
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(command, code, out, err)

    return call


@pytest.fixture
def kdbench_process(tmp_path):
    """The same in a process of its own, with further environment variables, and without a GPU as well."""

    def call(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KDBENCH")}
        clean |= {"COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", **environment}
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, arguments)],
            capture_output=True, text=True, encoding="utf-8", errors="replace", cwd=tmp_path, env=clean, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


class WorkerHere:
    """A worker that does its jobs in this process, at once."""

    pid = 0

    def __init__(self, slot, options, inbox):
        settings = json.loads(json.dumps({**asdict(options), "device": "cpu"}, default=str))
        self.emit = lambda event, **fields: inbox.put((slot.name, {"event": event, **fields}))
        self.context = worker._context(settings, torch.device("cpu"), self.emit, lambda: False)
        self.emit("ready")

    def send(self, message, job=None, beside=()):
        self.emit("done", **worker._work(json.loads(json.dumps(message, default=str)), self.context))

    def close(self):
        return True


def ask_here(code, request=None, seconds=None, environment=None):
    """``kdbench.child.ask`` without a process of its own."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
        try:
            exec(code, {})
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(code, status, out.getvalue(), err.getvalue())


@pytest.fixture
def one_process(monkeypatch):
    """Workers and short-lived children do their work in this process, which need not import torch for each."""
    monkeypatch.setattr(runner, "Pool", partial(Pool, start=WorkerHere))
    monkeypatch.setattr(child, "ask", ask_here)


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
    from kdbench.store.result import Accuracy, Result
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
