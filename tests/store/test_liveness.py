"""A process is told from others of its number, and files' ages from the clock of their own file system."""

import hashlib
import os
import subprocess
import sys
import time

import pytest

from kdbench.store import liveness
from kdbench.store.liveness import Process, file_system_time, process_state, signature, signer


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="the system does not tell processes apart")
def test_a_process_has_ended_when_it_is_gone_or_another_has_its_number():
    me = Process.current()
    assert not me.ended()
    assert me._replace(started="1").ended()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = me._replace(pid=child.pid, started="")
    child.communicate()
    assert other.ended()
    assert not other._replace(place="another machine").ended()
    assert not other._replace(place="").ended()


def test_the_age_of_a_file_needs_no_clock_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert 0 <= file_system_time(tmp_path) - (tmp_path / "x").stat().st_mtime < 5
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]
    assert file_system_time(tmp_path / "missing") == 1e9


@pytest.mark.parametrize(
    ("letter", "state"),
    [
        ("T", "stopped"),
        ("t", "stopped by a debugger"),
        ("D", "held up by the system"),
        ("Z", "gone"),
        ("S", ""),
        ("R", ""),
    ],
)
def test_a_process_is_blocked_by_what_the_system_says(monkeypatch, letter, state):
    monkeypatch.setattr(liveness, "_status", lambda pid: [letter])
    assert process_state(os.getpid()) == state


@pytest.mark.parametrize(("error", "state"), [(FileNotFoundError, ""), (IndexError, ""), (ProcessLookupError, "gone")])
def test_of_a_process_whose_status_cannot_be_read_nothing_is_known(monkeypatch, error, state):
    def refuse(pid):
        raise error

    monkeypatch.setattr(liveness, "_status", refuse)
    assert process_state(os.getpid()) == state


def test_numbers_that_no_process_has_are_gone_and_those_of_others_are_not(monkeypatch):
    assert process_state(2**22 + 1) == process_state(2**70) == "gone"

    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(liveness, "_status", lambda pid: ["T"])
    assert process_state(1) == "stopped"


def test_the_start_of_a_process_is_the_22nd_field_of_its_status_whatever_its_name(monkeypatch):
    text = "7 (a name) with) brackets) S " + " ".join(map(str, range(4, 53)))
    monkeypatch.setattr(liveness.Path, "read_text", lambda path, **options: text)
    assert liveness._started(7) == "22"


def test_files_are_named_after_the_host_and_eight_digits_of_its_place():
    assert Process(7, "node", "", "").machine == "node"
    assert Process(7, "node", "boot", "").machine == f"node-{hashlib.sha256(b'boot').hexdigest()[:8]}"


def test_a_signature_is_read_as_it_was_written_and_a_part_of_one_is_none():
    process, since = signer(signature() + "more\n")
    assert process == Process.current()
    assert time.strptime(since, "%Y-%m-%d %H:%M")
    for text in ("", "1\nhost\n2026-01-02 03:04\nplace\n", "x\nhost\n2026-01-02 03:04\nplace\n5\n"):
        with pytest.raises(ValueError, match=r"unpack|invalid"):
            signer(text)
