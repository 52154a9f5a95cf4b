"""A process is told from others of its number, and files' ages from the clock of their own file system."""

import os
import subprocess
import sys
import time

import pytest

from kdbench.store.liveness import Process, file_system_time


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
