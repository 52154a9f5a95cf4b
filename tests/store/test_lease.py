"""Leases: one holder at a time, by the observer's own clock, and a holder that was given up does not land."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from kdbench.errors import LostLease
from kdbench.store import lease as module
from kdbench.store.lease import BEAT_SECONDS, LEASE_SECONDS, Lease
from kdbench.store.liveness import Process
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.result import Failure


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand; holders of this process do not beat, and count as those of another machine."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(Lease, "_beat", lambda self, descriptor: None)
    monkeypatch.setattr(Process, "ended", lambda self: False)
    return now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lease"


def looks(observer, clock, seconds, step=BEAT_SECONDS):
    """Let an observer look for so long; whether it got the lease."""
    end = clock.seconds + seconds
    while clock.seconds < end:
        if observer.take():
            return True
        clock.seconds += step
    return False


def test_a_lease_that_is_renewed_stays(path, clock):
    holder, observer = Lease(path), Lease(path)
    assert holder.take()
    for beat in range(1, 6):
        assert not looks(observer, clock, LEASE_SECONDS - 10)
        holder._renew(holder._descriptor, beat)
    holder.check()
    holder.release()
    assert observer.take()
    observer.release()
    assert not path.exists()


def test_one_without_a_sign_of_life_is_broken_once_and_its_holder_notices(path, clock):
    holder, first, second = Lease(path), Lease(path), Lease(path)
    assert holder.take()
    assert not looks(first, clock, LEASE_SECONDS / 2)
    assert not second.take()
    assert looks(first, clock, LEASE_SECONDS)
    assert not second.take(), "it has not seen the new one for long"
    with pytest.raises(LostLease, match="another process has taken over"):
        holder.check()
    holder._renew(holder._descriptor, 9)
    first.check()
    holder.release()
    first.check()
    first.release()
    assert [*path.parent.iterdir()] == []


def test_an_observer_that_was_stopped_itself_does_not_count_that_time(path, clock):
    holder, observer = Lease(path), Lease(path)
    assert holder.take()
    assert not observer.take()
    clock.seconds += 100 * LEASE_SECONDS
    assert not observer.take()
    holder.release()


def test_the_lease_of_a_dead_process_of_this_machine_is_free_at_once(path, monkeypatch):
    holder, observer = Lease(path), Lease(path)
    assert holder.take()
    assert not observer.take()
    monkeypatch.setattr(Process, "ended", lambda self: True)
    assert observer.take()
    observer.release()
    with pytest.raises(LostLease):
        holder.check()
    holder.release()


def test_of_many_that_break_it_one_gets_it(path, monkeypatch):
    assert Lease(path).take()
    monkeypatch.setattr(Process, "ended", lambda self: self.started == "dead")
    path.write_bytes(path.read_bytes().replace(Process.current().started.encode(), b"dead"))
    observers, won = [Lease(path) for _ in range(16)], []
    start = threading.Barrier(len(observers))

    def run(observer):
        start.wait()
        if observer.take():
            won.append(observer)

    threads = [threading.Thread(target=run, args=(observer,)) for observer in observers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = []
    for observer in won:
        try:
            observer.check()
            held.append(observer)
        except LostLease:
            pass
    assert len(held) == 1
    for observer in won:
        observer.release()


def test_beats_show_life(path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    holder = Lease(path)
    assert holder.take()
    seen = {path.read_bytes()}
    end = time.monotonic() + 5
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(path.read_bytes())
    holder.release()
    assert len(seen) >= 3


@pytest.fixture
def record(tmp_path):
    """A record in a folder of which all processes take leases."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "leases").write_text("why\n")
    record = Record(tmp_path / "runs" / ("a" * 12))
    yield record
    record.lock().release()


@pytest.fixture
def other(record):
    """The same record, as another process sees it."""
    other = Record(record.folder)
    yield other
    other.lock().release()


def test_whoever_has_lost_a_record_writes_nothing_to_it(record, other, monkeypatch):
    record.lock().acquire(timeout=0)
    monkeypatch.setattr(Process, "ended", lambda self: True)
    other.lock().acquire(timeout=0)
    with pytest.raises(LostLease):
        record.write_bytes("state.pt", b"mine")
    with pytest.raises(LostLease):
        record.fail(Failure(kind="error", epoch=0, reason="x"))
    other.write_bytes("state.pt", b"theirs")
    (other.folder / ".weights.safetensors.0a.tmp").write_text("what the other is just writing")
    with pytest.raises(LostLease):
        record.begin({})
    assert {*os.listdir(record.folder)} == {"state.pt", ".weights.safetensors.0a.tmp"}
    assert record.state_file.read_bytes() == b"theirs"


def test_a_holder_that_is_stopped_between_its_last_look_and_the_rename_replaces_nothing(record, other, monkeypatch):
    """The next holder removes what it finds half-written, so there is nothing left to rename."""
    lock = record.lock().acquire(timeout=0)
    record.begin({})
    real = lock.check

    def stopped():
        monkeypatch.setattr(lock, "check", real)
        lock.check()
        monkeypatch.setattr(Process, "ended", lambda self: True)
        other.lock().acquire(timeout=0)
        other.begin({})
        other.write_bytes("metrics.jsonl", b"theirs")

    monkeypatch.setattr(lock, "check", stopped)
    with pytest.raises(LostLease):
        record.write_bytes("metrics.jsonl", b"mine")
    assert os.listdir(record.folder) == ["metrics.jsonl"]
    assert (record.folder / "metrics.jsonl").read_bytes() == b"theirs"


HOLDER = """import sys
from pathlib import Path
from kdbench.errors import LostLease
from kdbench.store import lease
from kdbench.store.record import Record

lease.BEAT_SECONDS = 0.01
record = Record(Path(sys.argv[1]))
with record.lock().acquire(timeout=0):
    record.begin({})
    record.write_bytes("state.pt", b"mine")
    print("at work", flush=True)
    input()
    try:
        record.write_bytes("state.pt", b"mine again")
    except LostLease:
        print("lost")
"""


def test_a_process_that_was_stopped_past_its_lease_leaves_the_record_alone_when_it_goes_on(record, other, clock):
    command = [sys.executable, "-c", HOLDER, str(record.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "at work\n"
        os.kill(holder.pid, signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        end = clock.seconds + 2 * LEASE_SECONDS
        while not other.lock().held and clock.seconds < end:
            with suppress(Taken):
                other.lock().acquire(timeout=0)
            clock.seconds += BEAT_SECONDS
        other.begin({})
        other.write_bytes("state.pt", b"theirs")
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.communicate("go on\n")[0] == "lost\n"
    assert holder.returncode == 0
    assert record.state_file.read_bytes() == b"theirs"
    other.lock().check()


def test_it_names_its_holder_and_counts_its_beats(path, clock):
    holder = Lease(path)
    assert holder.take()
    *names, token, beat = path.read_text().splitlines()
    assert (names[0], len(names), len(token), beat) == (str(os.getpid()), 5, 16, "0" * 12)
    holder._renew(holder._descriptor, 7)
    assert path.read_text().splitlines() == [*names, token, "000000000007"]
    assert not holder.take(), "it is held already"
    holder.release()
    assert not holder.held


@pytest.mark.parametrize(("step", "needed"), [(15.0, 4), (14.9, 5), (1000.0, 4), (5.0, 12), (4.9, 13)])
def test_it_is_stale_after_a_minute_of_which_each_look_counts_a_quarter_at_most(path, clock, step, needed):
    holder, observer = Lease(path), Lease(path)
    assert holder.take()
    looks = 0
    while not observer.take():
        looks += 1
        clock.seconds += step
    assert looks == needed
    observer.release()
    holder.release()


def test_the_wrong_lease_is_put_back_and_one_that_is_gone_is_not_removed(path, clock):
    holder = Lease(path)
    assert holder.take()
    content = path.read_bytes()
    assert not Lease(path)._remove(lambda found: found != content)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    holder.check()
    holder.release()
    assert not Lease(path)._remove(lambda found: True)


def test_what_is_no_lease_gives_way_and_a_folder_that_may_not_be_written_is_told(path, clock, monkeypatch):
    os.mkfifo(path)
    assert Lease(path)._remove(lambda found: False)
    assert list(path.parent.iterdir()) == []

    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "rename", refuse)
    with pytest.raises(PermissionError):
        Lease(path)._remove(lambda found: True)


def test_one_that_cannot_be_written_is_not_left_half_made(path, clock, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    lease = Lease(path)
    with pytest.raises(OSError, match="No space left"):
        lease.take()
    assert (lease.held, path.exists()) == (False, False)


def test_one_that_is_only_half_written_is_not_taken_for_that_of_a_dead_process(path):
    path.write_text("12\nhost\n")
    assert not Lease(path).take()


def test_a_holder_shows_life_every_five_seconds_by_a_number_that_grows(path, monkeypatch):
    waited, beats = [], []
    lease = Lease(path)
    answers = iter([False, False, False, True])
    lease._released = SimpleNamespace(wait=lambda seconds: waited.append(seconds) or next(answers))
    monkeypatch.setattr(lease, "_renew", lambda descriptor, beat: beats.append(beat))
    lease._beat(0)
    assert (waited, beats) == ([5.0] * 4, [1, 2, 3])
