"""A real Ray cluster on this machine, whose nodes and actors get lost."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdbench.execution import cluster
from kdbench.execution.node import look_at_node
from kdbench.execution.runner import run_suites
from kdbench.execution.worker_handle import RunOptions
from kdbench.suite.load import load_suites


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install 'kdbench[cluster]')"),
]


class Nodes:
    """Nodes of a cluster in process groups of their own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = []

    def start(self, *arguments, cpus=1):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--num-cpus={cpus}", "--block", *arguments]
        quiet = {"RAY_DISABLE_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        log = Path(self.folder, f"{len(self.processes)}.log")
        with log.open("wb") as out:
            self.processes.append(
                subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **quiet})
            )
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, f"the node does not start:\n{log.read_text()}"
            time.sleep(0.1)

    def add(self, cpus=1):
        self.start(f"--address={self.address}", cpus=cpus)

    def seats(self, number):
        """The processes of a node that are seats, each with its children."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
        lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        below = [str(self.processes[number].pid)]
        for parent in below:
            below += [pid for pid, of, _ in lines if of == parent]
        seats = [pid for pid, _, name in lines if pid in below and name.startswith("ray::Seat")]
        return {int(seat): [pid for pid, of, _ in lines if of == seat] for seat in seats}

    def lose(self, number):
        os.killpg(self.processes[number].pid, signal.SIGKILL)
        self.processes[number].wait()


@pytest.fixture(scope="module")
def nodes():
    """A head, and two nodes more."""
    with tempfile.TemporaryDirectory(prefix="kd") as folder:  # short: sockets are in it
        made = Nodes(folder)
        port = made.address.partition(":")[2]
        made.start(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
        )
        made.add()
        made.add()
        yield made
        for number, process in enumerate(made.processes):
            if process.poll() is None:
                made.lose(number)


def test_lost_nodes_and_a_new_one_change_no_byte(nodes, place, undisturbed):
    """Two of three are lost while at least two jobs are under way, so one of these is lost, too."""
    here = place()
    session = here.start("--cluster", nodes.address)
    session.wait_for(" of resnet8, trial 0: starts", seconds=90)
    time.sleep(1)
    nodes.lose(1)
    nodes.lose(2)
    nodes.add()
    assert session.end() == 0, session.said
    assert "Ray lost the worker" in session.said or "its node is lost" in session.said
    assert here.files() == undisturbed


def test_what_nodes_make_elsewhere_is_sent_here(nodes, place, undisturbed, monkeypatch):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "look_at_node", elsewhere)
    here, said = place(), []
    options = RunOptions(here.results, here.root, "cpu", checkpoint_seconds=0.2, cluster=nodes.address)
    suites = load_suites([str(here.root / "tiny.yaml")])
    assert run_suites(suites, options, lambda slot, event: said.append(event.get("text", ""))) == {}
    assert any("does not see" in text for text in said)
    assert here.files() == undisturbed


def test_a_run_on_two_cpus_of_a_node_outlives_the_loss_of_one(nodes, place):
    """The seat that holds the second is killed while the run stands still: this goes on as if nothing had been."""
    suite = """
protocol: {base: smoke, epochs: 4, milestones: []}
dataset: {name: digits, train_per_class: 24, test_per_class: 2}
grid: {student: resnet8, method: ce}
"""
    here, there = place("here", suite=suite), place("there", suite=suite)
    nodes.add(cpus=2)
    session = there.start("--devices-per-run", "2", "--cluster", nodes.address)
    session.wait_until(lambda: list(there.results.glob("runs/*/state.pt")), "a checkpoint", seconds=120)
    seats = nodes.seats(-1)
    (worker,) = (int(child) for children in seats.values() for child in children)
    (idle,) = (pid for pid, children in seats.items() if not children)
    os.kill(worker, signal.SIGSTOP)
    os.kill(idle, signal.SIGKILL)
    assert session.end() == 0, session.said
    assert "Ray lost the worker of " in session.said
    assert " ce #0: resumes after epoch" in session.said
    assert here.run("--devices-per-run", "2", "--jobs-per-device", "2")[0] == 0
    assert there.files() == here.files()


def elsewhere(token, paths, *, gpus):
    """The facts of a node that does not see the results."""
    return replace(look_at_node(token, paths, gpus=gpus), shares_results=False)
