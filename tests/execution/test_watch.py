"""Workers that hang: what is told of them, and when they are ended. The clock is made up."""

import os
import signal
import subprocess

import pytest

from kdbench.execution import worker_handle
from kdbench.execution.worker_handle import Watchdog


ME = os.getpid()


@pytest.fixture
def clock(monkeypatch):
    """clock(watchdog, seconds, pid=ME): let time pass as the pool lets it, and return what is found on the way."""
    now = [0.0]
    monkeypatch.setattr(worker_handle.time, "monotonic", lambda: now[0])

    def pass_by(watchdog, seconds, pid=ME):
        found = []
        for _ in range(seconds):
            now[0] += 1.0
            found += watchdog.check({"cpu": pid})
        return found

    pass_by.now = now
    return pass_by


@pytest.fixture
def watchdog(clock):
    watchdog = Watchdog()
    watchdog.add("cpu")
    watchdog.receive("cpu", "ready")
    watchdog.restart("cpu")
    return watchdog


def test_silence_is_told_and_then_ended(watchdog, clock):
    (told,) = clock(watchdog, 599)
    assert (told.slot, told.fatal) == ("cpu", False)
    assert told.text.startswith(f"worker cpu (PID {ME}) has said nothing for 60 s")
    assert told.text.endswith("after 10 min it is started again")
    (ended,) = clock(watchdog, 1)
    assert (ended.fatal, ended.text) == (True, f"worker cpu (PID {ME}) has said nothing for 600 s")


def test_one_that_lives_is_never_ended_for_a_long_step(watchdog, clock):
    found = []
    for _ in range(1000):
        watchdog.receive("cpu", "alive")
        found += clock(watchdog, 2)
    (told,) = found
    assert not told.fatal
    assert "is alive, but its job has not come further for 600 s: a long step, or a device or file system" in told.text
    watchdog.receive("cpu", "epoch")
    assert not clock(watchdog, 59)


def test_imports_may_take_their_time(clock):
    watchdog = Watchdog()
    watchdog.add("cpu")
    watchdog.restart("cpu")
    (told,) = [each for each in clock(watchdog, 3000) if "said nothing" in each.text]
    assert (told.fatal, told.text) == (False, f"worker cpu (PID {ME}) has said nothing for 60 s since its start")


def test_the_time_in_which_this_process_was_stopped_does_not_count(watchdog, clock):
    clock.now[0] += 5000
    assert not clock(watchdog, 50)


@pytest.mark.parametrize(("beats", "seconds", "words"), [(False, 10, "has said nothing"), (True, 600, "is alive, but")])
def test_after_a_request_to_stop_patience_is_bounded(watchdog, clock, beats, seconds, words):
    clock(watchdog, 59)
    watchdog.stop(["cpu"])
    found = []
    stopped_at = clock.now[0]
    while not any(each.fatal for each in found):
        if beats:
            watchdog.receive("cpu", "alive")
        found += clock(watchdog, 1)
    assert clock.now[0] - stopped_at == seconds
    assert words in found[-1].text
    assert [each.text.endswith("Ctrl-C again stops at once") for each in found[:-1]] == [True] * beats


def test_a_stopped_process_is_called_so(watchdog, clock):
    with subprocess.Popen(["sleep", "60"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        (told,) = clock(watchdog, 60, process.pid)
        process.kill()
    assert f"and is stopped ('kill -CONT {process.pid}' lets it go on)" in told.text


def test_of_a_worker_of_another_machine_no_process_is_named(watchdog, clock):
    (told,) = clock(watchdog, 60, pid=0)
    assert told.text == "worker cpu has said nothing for 60 s; after 10 min it is started again"
    watchdog.restart("cpu")
    found = []
    for _ in range(600):
        watchdog.receive("cpu", "alive")
        found += clock(watchdog, 1, pid=0)
    assert [each.text for each in found] == [
        "worker cpu is alive, but its job has not come further for 600 s: a long step, or a device or file system that "
        "hangs; if it hangs, 'kill -9' starts it again"
    ]


def test_a_step_that_goes_on_after_a_request_to_stop_is_told_after_half_a_minute(watchdog, clock):
    watchdog.stop(["cpu"])
    found = []
    for _ in range(60):
        watchdog.receive("cpu", "alive")
        found += clock(watchdog, 1)
    (told,) = found
    assert (told.fatal, told.text) == (
        False,
        f"worker cpu (PID {ME}) is alive, but its job has not come further for 30 s: a long step, or a device or file system "
        "that hangs; Ctrl-C again stops at once",
    )


def test_one_that_was_silent_and_told_of_is_told_of_again_after_a_sign_of_life(watchdog, clock):
    assert len(clock(watchdog, 100)) == 1
    watchdog.receive("cpu", "alive")
    assert len(clock(watchdog, 59)) == 0
    assert [each.fatal for each in clock(watchdog, 1)] == [False]


def test_one_that_stops_while_it_imports_is_ended_soon(clock):
    watchdog = Watchdog()
    watchdog.add("cpu")
    watchdog.stop(["cpu"])
    assert clock(watchdog, 9) == []
    assert [(each.fatal, each.text) for each in clock(watchdog, 1)] == [
        (True, f"worker cpu (PID {ME}) has said nothing for 10 s")
    ]


@pytest.mark.parametrize(
    ("state", "ready", "cause"),
    [
        ("", True, "; after 10 min it is started again"),
        ("", False, " since its start"),
        ("stopped", True, " and is stopped ('kill -CONT 7' lets it go on); after 10 min it is started again"),
        ("held up by the system", False, " and is held up by the system since its start"),
    ],
)
def test_what_may_be_the_matter_is_said(monkeypatch, state, ready, cause):
    monkeypatch.setattr(worker_handle, "process_state", lambda pid: state)
    assert worker_handle._cause(7, ready) == cause
    assert "stopped" not in worker_handle._cause(0, ready)
