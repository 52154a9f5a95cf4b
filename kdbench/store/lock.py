"""Locks between processes. The system frees them when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from filelock import SoftFileLock, Timeout

from kdbench.errors import KdbenchError
from kdbench.store.liveness import process_state


LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of file systems without locks, such as NFS without its lock daemon or Lustre without ``-o flock``."""

POLL_SECONDS = 0.5


class Lock:
    """An exclusive lock on a file, which names its holder: process and host, a line each.

    On a file system without locks a file that is there only while the lock is held stands in for it: one that a dead
    machine left behind must be removed by hand. A file that belongs to somebody else need only be readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._stand_in: SoftFileLock | None = None

    def acquire(self, timeout: float = -1) -> Self:
        """Take the lock within so many seconds (negative: whenever it is free).

        Raises Timeout where another holds it to the end, and KdbenchError where the file may not be used.
        """
        end = time.monotonic() + timeout
        while not self._take():
            if timeout >= 0 and time.monotonic() >= end:
                raise Timeout(str(self.path))
            time.sleep(POLL_SECONDS)
        return self

    def wait(self, what: str, note: Callable[[str], None]) -> Self:
        """Wait for the lock, and note who holds ``what`` if that takes time. Raises as ``acquire`` does."""
        try:
            return self.acquire(timeout=0)
        except Timeout:
            note(f"another process is at {what}: waiting for it ({self.holder()})")
            return self.acquire()

    def release(self) -> None:
        """Free the lock, if it is held."""
        if self._stand_in:
            self._stand_in.release()
            self._stand_in = None
        elif self._descriptor is not None:
            self._sign(self._descriptor, "")
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def stands_in(self) -> bool:
        """Whether it is held by a file's presence, because the file system has no locks."""
        return self._stand_in is not None

    def holder(self) -> str:
        """The holder, as far as known: process, host, since when, and whether it is stopped."""
        for path in (self.path, self._presence):
            try:
                pid, host = path.read_text().splitlines()[:2]
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
                state = process_state(int(pid)) if host == socket.gethostname() else ""
            except (OSError, ValueError):
                continue
            if state != "gone":
                return f"process {pid} on {host} since {since}" + (f", which is {state}" if state else "")
        return "a process that has not left its name"

    def __enter__(self) -> Self:
        return self if self._descriptor is not None or self._stand_in else self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def _presence(self) -> Path:
        return self.path.with_suffix(".held")

    def _take(self) -> bool:
        import fcntl

        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
            except PermissionError as error:
                raise KdbenchError(self._refusal(error)) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            if error.errno in LOCKLESS:
                return self._take_stand_in()
            raise KdbenchError(self._refusal(error)) from None
        self._sign(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n")
        self._descriptor = descriptor
        return True

    def _take_stand_in(self) -> bool:
        lock = SoftFileLock(self._presence)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._stand_in = lock
        return True

    @staticmethod
    def _sign(descriptor: int, text: str) -> None:
        with contextlib.suppress(OSError):  # somebody else's file, or no room: the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)

    def _refusal(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        try:
            mine = self.path.stat().st_uid == os.geteuid()
            owner = self.path.owner()
        except (OSError, KeyError):
            mine, owner = False, "somebody else"
        if mine:
            return f"{self.path}: cannot be locked: {reason}"
        return (
            f"{self.path}: belongs to {owner} and cannot be locked: {reason}. Its owner can allow it with "
            f"'chmod a+r,g+w {self.path.parent}/*', and for later files with 'umask 002' before kdbench run"
        )


def lacks_locks(folder: Path) -> bool:
    """Whether a folder's file system lacks file locks. Raises KdbenchError if files may not be locked there."""
    path = folder / "probe.lock"
    try:
        with Lock(path).acquire(timeout=0) as lock:
            return lock.stands_in
    except Timeout:
        return False  # another process tries the same
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
