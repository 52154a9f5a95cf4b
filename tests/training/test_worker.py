"""A worker's talk with its parent, and what it makes of what the system says."""

import errno
import io
import json
import os
import time
from types import SimpleNamespace

import pytest

from kdbench.training import worker
from kdbench.training.worker import Channel


def test_the_parent_hears_that_a_worker_at_a_long_step_is_alive(monkeypatch):
    monkeypatch.setattr(worker, "ALIVE_SECONDS", 0.001)
    monkeypatch.setattr(Channel, "_read", lambda self, source: None)
    sink = io.StringIO()
    channel = Channel(io.StringIO(), sink)
    while sink.getvalue().count("alive") < 2:
        time.sleep(0.001)
    channel.emit("message", text="long")
    channel.close()
    assert {json.loads(line)["event"] for line in sink.getvalue().splitlines()} == {"alive", "message"}
    assert not channel.pulse.is_alive()


@pytest.mark.parametrize(
    ("error", "reason", "fatal"),
    [
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long", False),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device: results", True),
        (
            PermissionError(errno.EACCES, "Permission denied", "results/runs/a"),
            "Permission denied: results/runs/a",
            True,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data/x.bin"), "Permission denied: data/x.bin", False),
    ],
)
def test_the_results_folder_is_blamed_for_what_happens_there_and_no_more(monkeypatch, error, reason, fatal):
    def broken(job, shop):
        raise error

    monkeypatch.setattr(worker, "_dispatch", broken)
    answer = worker._work({}, SimpleNamespace(store=SimpleNamespace(root="results")))
    assert (answer["error"], answer["fatal"]) == (reason, fatal)
