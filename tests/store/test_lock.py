"""Locks name their holder, need no permission to write, and have a stand-in where the file system has none."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from kdbench.errors import BadInput, KdbenchError
from kdbench.store import lock as lock_module
from kdbench.store.liveness import Process, process_state, signature
from kdbench.store.lock import Lock, Taken, prepare_locks
from kdbench.store.store import Store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lock"


def answers(monkeypatch, number):
    """flock() answers as a file system does that cannot lock."""

    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_the_holder_is_named_and_forgotten_when_it_is_done(path):
    with Lock(path):
        assert Lock(path).holder().startswith(f"process {os.getpid()} on {os.uname().nodename} since 20")
        with pytest.raises(Taken):
            Lock(path).acquire(timeout=0)
    assert Lock(path).holder() == "a process that has not left its name"
    assert path.read_text() == ""


def test_a_stopped_holder_is_called_so_and_a_dead_one_is_not_named(path):
    code = f"from pathlib import Path; from kdbench.store.lock import Lock; import time; p = Path({str(path)!r})\n"
    code += "with Lock(p): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        os.kill(holder.pid, signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        assert Lock(path).holder().endswith(", which is stopped")
        holder.kill()
    assert process_state(holder.pid) == "gone"
    assert Lock(path).holder() == "a process that has not left its name"
    Lock(path).acquire(timeout=0).release()


def test_a_holder_in_a_container_is_not_taken_for_a_process_of_this_machine(path):
    path.write_text(signature().replace(str(os.getpid()), str(2**22 + 1)))
    assert Lock(path).holder() == "a process that has not left its name"
    path.write_text(path.read_text().replace(Process.current().place, "another namespace"))
    assert Lock(path).holder().startswith(f"process {2**22 + 1} on {os.uname().nodename} since 20")


def test_whoever_waits_gets_it_when_it_is_free(path, monkeypatch):
    first = Lock(path).acquire()
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: first.release())
    with Lock(path) as second:
        assert second.held


def test_a_file_that_may_only_be_read_can_be_locked(path, monkeypatch):
    path.write_text("1\nelsewhere\n")
    real = os.open

    def protected(name, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", protected)
    with Lock(path), pytest.raises(Taken):
        Lock(path).acquire(timeout=0)
    assert path.read_text() == "1\nelsewhere\n"


@pytest.mark.parametrize("refused", ["open", "flock"])
def test_where_it_cannot_the_owner_is_told_what_to_do(path, monkeypatch, refused):
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    if refused == "open":

        def denied(name, *rest):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))

        monkeypatch.setattr(os, "open", denied)
    else:
        answers(monkeypatch, errno.EBADF)
    with pytest.raises(KdbenchError) as caught:
        Lock(path).acquire(timeout=0)
    assert str(caught.value).startswith(f"{path}: belongs to {path.owner()} and cannot be locked: ")
    assert f"'chmod a+r,g+w {path.parent}/*'" in str(caught.value)


def test_of_ones_own_file_no_owner_is_to_be_asked(path, monkeypatch):
    path.touch()
    answers(monkeypatch, errno.EBADF)
    with pytest.raises(KdbenchError) as caught:
        Lock(path).acquire(timeout=0)
    assert str(caught.value) == f"{path}: cannot be locked: {os.strerror(errno.EBADF)}"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_lease_is_taken(path, monkeypatch, number):
    answers(monkeypatch, number)
    with Lock(path) as lock:
        assert lock.leased
        assert Lock(path).holder().startswith(f"process {os.getpid()} on ")
        with pytest.raises(Taken):
            Lock(path).acquire(timeout=0)
    assert not path.with_suffix(".lease").exists()
    Lock(path).acquire(timeout=0).release()


def test_a_folder_without_locks_is_told_of_before_anything_runs(tmp_path, monkeypatch):
    assert Store(tmp_path / "a").check_writable() == []
    answers(monkeypatch, errno.EIO)
    with pytest.raises(BadInput, match="cannot be locked: Input/output error"):
        Store(tmp_path / "a").check_writable()
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]
    answers(monkeypatch, errno.ENOLCK)
    (trouble,) = Store(tmp_path / "b").check_writable()
    assert trouble.startswith(f"{tmp_path / 'b'}: its file system has no file locks. Leases take the place of locks")


def test_a_file_system_that_grants_a_lock_twice_is_found_out_and_the_folder_marked_for_all(tmp_path, monkeypatch):
    with monkeypatch.context() as lying:
        lying.setattr(fcntl, "flock", lambda descriptor, operation: None)
        (trouble,) = Store(tmp_path).check_writable()
    assert "grants one lock twice" in trouble
    assert Store(tmp_path).check_writable() == [], "it is told once"
    assert Store(tmp_path).leases() == [trouble], "another machine, whose locks seem to work, takes leases, too"
    with Store(tmp_path).run("0" * 12).lock() as lock:
        assert lock.leased


def test_on_a_network_file_system_leases_are_taken_whatever_its_locks_do(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "file_system", lambda folder: "nfs4")
    (trouble,) = Store(tmp_path).check_writable()
    assert "nfs4 is not known as a file system of one machine" in trouble


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664)])
def test_a_group_may_lock_where_the_umask_lets_it(path, umask, mode):
    before = os.umask(umask)
    try:
        Lock(path).acquire().release()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_probe_that_another_process_has_removed_is_no_trouble(tmp_path, monkeypatch):
    acquire = Lock.acquire

    @contextmanager
    def acquired(lock, timeout):
        with acquire(lock, timeout=timeout) as held:
            lock.path.unlink()
            yield held

    monkeypatch.setattr(Lock, "acquire", acquired)
    prepare_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; the lengths of all sleeps."""
    slept = []
    monkeypatch.setattr(lock_module.time, "monotonic", lambda: 1000.0 + sum(slept))
    monkeypatch.setattr(lock_module.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize(("timeout", "looks"), [(0, 0), (0.25, 1), (0.5, 1), (0.75, 2), (2, 4)])
def test_a_lock_is_looked_at_twice_a_second_until_the_time_is_up(path, clock, timeout, looks):
    with Lock(path), pytest.raises(Taken, match=str(path)):
        Lock(path).acquire(timeout=timeout)
    assert clock == [0.5] * looks


def test_one_object_does_not_take_a_lock_twice_and_may_release_one_that_it_has_not(path, clock):
    lock = Lock(path).acquire()
    with pytest.raises(Taken):
        lock.acquire(timeout=0)
    with lock as same:
        assert same is lock
    assert (lock.held, lock.leased) == (False, False)
    lock.release()
    with lock:
        assert lock.held


def test_whoever_waits_says_for_whom(path, monkeypatch):
    told, first = [], Lock(path)
    Lock(path).wait("the record", told.append).release()
    assert told == []
    first.acquire()
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: first.release())
    holder = first.holder()
    Lock(path).wait("the record", told.append).release()
    assert told == [f"another process is at the record: waiting for it ({holder})"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open files")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
def test_a_lock_that_is_not_got_leaves_no_file_open(path, monkeypatch, number):
    before = len(os.listdir("/proc/self/fd"))
    with Lock(path):
        with pytest.raises(Taken):
            Lock(path).acquire(timeout=0)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    answers(monkeypatch, number)
    with contextlib.suppress(KdbenchError), Lock(path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_of_nobody_known_is_somebody_elses(path, monkeypatch):
    def nobody(path):
        raise KeyError

    path.touch()
    monkeypatch.setattr(type(path), "owner", nobody)
    answers(monkeypatch, errno.EBADF)
    with pytest.raises(KdbenchError, match=f"^{path}: belongs to somebody else and cannot be locked: "):
        Lock(path).acquire(timeout=0)


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw - autofs systemd-1 rw
31 30 0:50 / /data rw - nfs4 server:/export rw
32 31 0:51 / /data/own\040disk rw - xfs /dev/sdb1 rw
33 22 0:52 / /dat rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/one", "ext4"),
        ("/data", "nfs4"),
        ("/data/results", "nfs4"),
        ("/data/own disk/results", "xfs"),
        ("/data/own", "nfs4"),
        ("/dat/x", "tmpfs"),
        ("/database", "ext4"),
    ],
)
def test_a_folder_is_on_the_mount_nearest_above_it_and_of_two_at_one_point_on_the_later(monkeypatch, folder, kind):
    monkeypatch.setattr(lock_module.Path, "read_text", lambda path, **options: MOUNTS.strip())
    monkeypatch.setattr(os.path, "realpath", str)
    assert lock_module.file_system(folder) == kind


def test_where_the_system_does_not_tell_its_mounts_locks_are_tried(tmp_path, monkeypatch):
    def absent(path, **options):
        raise FileNotFoundError

    monkeypatch.setattr(lock_module.Path, "read_text", absent)
    assert lock_module.file_system(tmp_path) == ""
    prepare_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_another_process_holds_is_no_trouble_and_not_waited_for(tmp_path, clock):
    with Lock(tmp_path / "probe.lock"):
        prepare_locks(tmp_path)
    assert clock == []
    assert not (tmp_path / "leases").exists()
