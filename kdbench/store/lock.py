"""Locks between processes: the system's file locks, which end with their holder, or leases where those do not hold."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from kdbench.errors import KdbenchError
from kdbench.files import share_with_group, write_text
from kdbench.store.lease import Lease
from kdbench.store.liveness import signature, signer


LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of file systems without locks, such as NFS without its lock daemon or Lustre without ``-o flock``."""

POLL_SECONDS = 0.5

MARK = "leases"
"""A file of this name in a folder of locks says why all processes, on whatever machine, take leases there."""


class Taken(Exception):
    """Another process holds a lock, and held it as long as was waited."""


class Lock:
    """An exclusive lock on a file, which names its holder.

    Where the folder is marked, or its file system has no locks, a lease beside the file takes its place. A file that belongs
    to somebody else need only be readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._lease = Lease(path.with_suffix(".lease"))

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None or self._lease.held

    @property
    def leased(self) -> bool:
        """Whether it is held by a lease."""
        return self._lease.held

    def acquire(self, timeout: float = -1) -> Self:
        """Take the lock within so many seconds (negative: whenever it is free).

        Raises Taken where another holds it to the end, and KdbenchError where the file may not be used.
        """
        end = time.monotonic() + timeout
        while self.held or not self._take():
            if timeout >= 0 and time.monotonic() >= end:
                raise Taken(str(self.path))
            time.sleep(POLL_SECONDS)
        return self

    def wait(self, what: str, note: Callable[[str], None]) -> Self:
        """Wait for the lock, and note who holds ``what`` if that takes time. Raises as ``acquire`` does."""
        try:
            return self.acquire(timeout=0)
        except Taken:
            note(f"another process is at {what}: waiting for it ({self.holder()})")
            return self.acquire()

    def check(self) -> None:
        """Raise LostLease if it was held and another process has broken its lease."""
        self._lease.check()

    def release(self) -> None:
        """Free the lock, if it is held."""
        self._lease.release()
        if self._descriptor is not None:
            self._sign(self._descriptor, "")
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """The holder, as far as known: process, host, since when by its clock, and whether it is stopped."""
        for path in (self.path, self._lease.path):
            try:
                process, since = signer(path.read_text())
            except (OSError, ValueError):
                continue
            if not process.ended():
                state = process.state()
                return f"process {process.pid} on {process.host} since {since}" + (
                    f", which is {state}" if state else ""
                )
        return "a process that has not left its name"

    def __enter__(self) -> Self:
        return self if self.held else self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self) -> bool:
        if os.path.lexists(self.path.with_name(MARK)):
            return self._lease.take()
        descriptor = self._open()
        try:
            if not _flock(descriptor):
                os.close(descriptor)
                return False
        except OSError as error:
            os.close(descriptor)
            if error.errno in LOCKLESS:
                return self._lease.take()
            raise KdbenchError(self._refusal(error)) from None
        self._sign(descriptor, signature())
        self._descriptor = descriptor
        return True

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            try:
                return os.open(self.path, os.O_RDONLY)
            except PermissionError as error:
                raise KdbenchError(self._refusal(error)) from None
        share_with_group(self.path)
        return descriptor

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


def _flock(descriptor: int) -> bool:
    """Lock an open file unless another has; the lock ends when it is closed. Raises OSError where that cannot be done."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prepare_locks(folder: Path) -> None:
    """Find out whether file locks hold in a folder, among all machines that may see it, and mark it if not.

    Raises KdbenchError if files may not be locked, OSError if none can be written.
    """
    if not why_leases(folder) and (reason := _trouble_with_locks(folder)):
        write_text(folder / MARK, f"{reason}\n")


def why_leases(folder: Path) -> str:
    """Why a folder is marked as one in which leases take the place of locks; "" if it is not."""
    try:
        return (folder / MARK).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _trouble_with_locks(folder: Path) -> str:
    kind = file_system(folder)
    if kind not in LOCAL:
        return f"{kind} is not known as a file system of one machine"
    path = folder / "probe.lock"
    try:
        with Lock(path).acquire(timeout=0) as lock:
            if lock.leased:
                return "its file system has no file locks"
            descriptor = os.open(path, os.O_RDONLY)
            try:
                return "its file system grants one lock twice" if _flock(descriptor) else ""
            finally:
                os.close(descriptor)
    except (Taken, FileNotFoundError):
        return ""  # another process tries the same, or has just removed the file
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


LOCAL = frozenset(
    "bcachefs btrfs exfat ext2 ext3 ext4 f2fs jfs ntfs3 overlay ramfs rootfs tmpfs vfat xfs zfs".split()  # noqa: SIM905
) | {""}
"""File systems that one machine alone has mounted, so that its locks hold for all; "" where the system does not say."""


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, such as ``nfs4``; "" where the system does not say."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    where = os.path.realpath(folder)
    found = "", ""
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), place.split()[4])
        if os.path.commonpath([where, point]) == point and len(point) >= len(found[0]):
            found = point, kind.split()[0]
    return found[1]
