"""Real `kdbench run` processes on a suite of seconds, and ways to look at them from outside."""

import fcntl
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest


SUITE = """
protocol: {base: smoke, epochs: 10, milestones: [8], teacher: {epochs: 4, milestones: [3]}}
dataset: {name: digits, train_per_class: 4, test_per_class: 2}
grid:
  - {teacher: resnet8, student: resnet8, method: [ce, kd, vid]}
  - teacher: resnet8
    student: resnet8
    method: kd
    strategy: simultaneous
    protocol: {base: smoke, epochs: 10, node_embedding: 8, teacher: {epochs: 4, milestones: [3]}}
"""
KEPT = ("spec.json", "metrics.jsonl", "result.json", "weights.safetensors")


def environment():
    faulty = Path(__file__).parents[1] / "training"
    own = {"PYTHONPATH": str(faulty), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return {**os.environ, **own}


@dataclass
class Session:
    """One `kdbench run`, with its standard error in a file."""

    command: list
    log: Path
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.DEVNULL, stderr=log, env=environment(), **self.options
            )

    @property
    def said(self):
        return self.log.read_text()

    def wait_for(self, text, seconds=60):
        self.wait_until(lambda: text in self.said, repr(text), seconds)

    def wait_until(self, condition, what, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said}"
            assert time.monotonic() < end, f"never {what}:\n{self.said}"
            time.sleep(0.02)

    def workers(self):
        """Ids of the worker processes."""
        return self.children(self.process.pid)

    @staticmethod
    def children(parent):
        """Ids of the processes that a process has started."""
        path = Path(f"/proc/{parent}/task/{parent}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def end(self, seconds=120):
        return self.process.wait(timeout=seconds)


@dataclass
class Place:
    """A results folder and a suite to run in it."""

    root: Path
    suite: str = SUITE
    started: list = field(default_factory=list)

    def __post_init__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        self.results = self.root / "results"
        (self.root / "tiny.yaml").write_text(self.suite)

    def start(self, *arguments, python=(), **options):
        command = [sys.executable, *python, "-m", "kdbench", "run", str(self.root / "tiny.yaml"), "--devices", "cpu"]
        command += ["--results", str(self.results), "--data", str(self.root), "--checkpoint-seconds", "0.2", *arguments]
        self.started.append(Session(command, self.root / f"{len(self.started)}.log", options))
        return self.started[-1]

    def run(self, *arguments, **options):
        session = self.start(*arguments, **options)
        return session.end(), session.said

    def files(self):
        """Everything that must be the same byte for byte."""
        folders = [folder for kind in ("teachers", "runs") for folder in sorted((self.results / kind).glob("*"))]
        return {(f.parent.name, f.name, name): (f / name).read_bytes() for f in folders for name in KEPT}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def gone():
    """gone(pids): wait until no such process is left."""

    def wait(pids, seconds=10):
        end = time.monotonic() + seconds
        while left := [pid for pid in pids if alive(pid)]:
            assert time.monotonic() < end, f"still there: {left}"
            time.sleep(0.02)

    return wait


@pytest.fixture
def place(tmp_path):
    """place(name="place", suite=…): a results folder; processes that are left over are ended afterwards."""
    made = []

    def make(name="place", **options):
        made.append(Place(tmp_path / name, **options))
        return made[-1]

    yield make
    for session in [session for each in made for session in each.started]:
        session.process.kill()
        session.process.wait()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What an uninterrupted run leaves: made by the first test process that asks, read by the others."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = Place(shared / "undisturbed")
    with (shared / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.results.exists():
            code, said = place.run()
            assert code == 0, said
    return place.files()
