"""Real processes: killed, interrupted, doubled, crashed, without room. Nothing is lost, nothing done twice."""

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes through /proc")


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(place, undisturbed, gone):
    """Both or the parent wherever the clock finds them: importing, loading, training, writing; a worker once it has a job."""
    draw, here = random.Random(20), place()
    for target in ("both", "parent", "worker"):
        session = here.start()
        session.wait_for("starts")
        time.sleep(draw.uniform(1.0, 3.5) if target != "worker" else 0)
        workers = session.workers()
        victims = (workers if target != "parent" else []) + ([session.process.pid] if target != "worker" else [])
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        code = session.end()
        gone(workers)
        if code == 0:
            break
    assert code == 0, session.said
    assert target != "worker" or "the worker process ended (killed by SIGKILL: out of memory" in session.said
    assert here.files() == undisturbed
    assert not list(here.results.glob("*/*/.*")), "temporary files are left"


@pytest.mark.slow
def test_signals_save_and_stop_and_the_same_command_goes_on(place, undisturbed, gone):
    here = place()
    for number, seconds in ((signal.SIGINT, "1000"), (signal.SIGTERM, "0")):
        session = here.start("--checkpoint-seconds", seconds)
        if number == signal.SIGINT:
            session.wait_for("teacher resnet8 on digits: epoch 1")
        else:
            session.wait_until(lambda: list(here.results.glob("runs/*/state.pt")), "a student is saved")
        workers = session.workers()
        session.process.send_signal(number)
        assert session.end() == 130
        assert "Saving and stopping; Ctrl-C again stops at once." in session.said
        assert f"resume with the same command:\n  kdbench run {here.root}/tiny.yaml --devices cpu" in session.said
        assert "Traceback" not in session.said
        gone(workers)
        assert list(here.results.glob("*/*/state.pt"))
    session = here.start()
    session.wait_for("resumes after epoch")
    assert session.end() == 0
    assert here.files() == undisturbed

    code, imports = here.run(python=("-X", "importtime"))
    assert code == 0
    assert "kdbench.planning.plan" in imports
    assert "torch" not in imports, "nothing is left to do, so torch is not needed"
    assert here.files() == undisturbed


@pytest.mark.slow
def test_a_run_on_two_devices_goes_on_when_the_process_of_one_is_killed(place, gone):
    here = place(
        suite="""
protocol: {base: smoke, epochs: 6, milestones: []}
dataset: {name: digits, train_per_class: 24, test_per_class: 2}
grid: {student: resnet8, method: ce}
"""
    )
    session = here.start("--devices-per-run", "2", "--jobs-per-device", "2")
    session.wait_until(lambda: list(here.results.glob("runs/*/state.pt")), "a checkpoint")
    (worker,) = session.workers()
    (replica,) = session.children(worker)
    os.kill(replica, signal.SIGKILL)
    gone([worker])
    session.wait_for("resumes after epoch")
    assert session.end() == 0
    (metadata,) = here.results.glob("runs/*/metadata.json")
    assert json.loads(metadata.read_text())["sessions"] == 2


@pytest.mark.slow
def test_runs_that_have_no_room_together_on_one_of_two_devices_are_trained_by_halves(place):
    here = place(
        suite="""
protocol: {base: smoke, epochs: 2}
dataset: {name: digits, train_per_class: 8, test_per_class: 2}
grid: {student: resnet8, method: [ce, {name: hungry, terms: {ce: 1, "faulty_terms:Beside": {hungry: true}}}]}
"""
    )
    code, said = here.run("--devices-per-run", "2", "--jobs-per-device", "2")
    assert code == 1
    assert "out of memory with 2 students at once: continuing with half of them at a time" in said
    assert "out of memory: device 2 of 2: OutOfMemoryError: no room here" in said
    assert len([*here.results.glob("runs/*/result.json")]) == 1


@pytest.mark.slow
def test_a_second_signal_ends_at_once(place, gone):
    here = place(
        suite="""
protocol: {base: smoke, epochs: 3}
dataset: digits
grid: {student: resnet8, method: {name: slow, terms: {ce: 1, "faulty_terms:Slow": 1}}}
"""
    )
    session = here.start()
    session.wait_for("starts")
    time.sleep(2)
    workers = session.workers()
    session.process.send_signal(signal.SIGINT)
    session.wait_for("Saving and stopping")
    session.process.send_signal(signal.SIGINT)
    assert session.end(seconds=5) == 130
    gone(workers, seconds=2)


@pytest.mark.slow
def test_two_at_once_do_everything_once(place, undisturbed):
    here = place()
    sessions = [here.start() for _ in range(2)]
    assert [session.end() for session in sessions] == [0, 0]
    assert here.files() == undisturbed
    records = (path for kind in ("runs", "teachers") for path in here.results.glob(f"{kind}/*/metadata.json"))
    assert [json.loads(path.read_text())["sessions"] for path in records] == [1] * 5
    said = "".join(session.said for session in sessions)
    assert "resumes after" not in said
    assert "FAILED" not in said


@pytest.mark.slow
def test_a_crash_loop_ends_with_the_failure_of_its_run(place):
    here = place(
        suite="""
protocol: {base: smoke, epochs: 2}
dataset: {name: digits, train_per_class: 2, test_per_class: 1}
grid: {student: resnet8, method: {name: deadly, terms: {ce: 1, "faulty_terms:Deadly": 1}}}
"""
    )
    code, said = here.run()
    assert code == 1
    assert said.count("the worker process ended (exit code 7); starting it again from the last checkpoint") == 2
    assert said.count("FAILED resnet8 deadly #0: the worker process ended (exit code 7)") == 1
    assert "Traceback" not in said
    (failure,) = [json.loads(path.read_text()) for path in here.results.glob("runs/*/failure.json")]
    assert failure["kind"] == "error"


@pytest.mark.slow
def test_no_room_for_results_is_one_message_and_a_later_run_goes_on(place):
    """A limit on the size of files stands for a full disk: writing fails in the same places."""
    here = place(
        suite="""
protocol: {base: smoke, epochs: 2}
dataset: {name: digits, train_per_class: 2, test_per_class: 1}
grid: {teacher: resnet8, student: resnet8, method: [ce, kd]}
"""
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, said = here.run(preexec_fn=limit)
    assert code == 1
    assert f"File too large: {here.results}" in said
    assert "resume with the same command" in said
    assert "Traceback" not in said
    assert "FAILED" not in said
    assert not list(here.results.glob("*/*/.*"))
    assert not list(here.results.glob("*/*/result.json"))
    code, said = here.run()
    assert code == 0, said
    assert len(list(here.results.glob("*/*/result.json"))) == 3
