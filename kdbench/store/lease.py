"""Leases: files that stand in for locks where the file system has none that hold for all machines.

A lease is there while it is held, and its holder renews it every few seconds. One that an observer sees unchanged for
``LEASE_SECONDS``, by the observer's own clock, is stale, and at once if the holder ran on the observer's machine and is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kdbench.errors import BadRecord, LostLease
from kdbench.files import share_with_group
from kdbench.store.liveness import signature, signer
from kdbench.store.reading import read


LEASE_SECONDS = 60.0
"""After so long without a sign of life a holder counts as dead."""

BEAT_SECONDS = 5.0
"""The time between two signs of life."""

LOOKS = 4
"""A stale lease was looked at more often than this: an observer that was stopped itself has seen nothing meanwhile."""


class Lease:
    """A file that one process at most has made, and renews through its descriptor: never another's in its place.

    All looks open the file anew, which is when network file systems ask the server.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = ""
        self._descriptor: int | None = None
        self._released = threading.Event()
        self._seen: bytes | None = None
        self._looked = self._unchanged = 0.0

    @property
    def held(self) -> bool:
        """Whether this object has taken it and not released it. Another may have broken it meanwhile."""
        return self._descriptor is not None

    def take(self) -> bool:
        """Make the lease, unless it is there and not stale. Raises OSError where it cannot be written."""
        return not self.held and (self._create() or (self._break() and self._create()))

    def check(self) -> None:
        """Raise LostLease if it was held and broken: this process was stopped for too long."""
        if self.held and not self._is_mine(self._content()):
            raise LostLease(
                f"{self.path}: another process has taken over, for this one gave no sign of life for {LEASE_SECONDS:.0f} s"
            )

    def release(self) -> None:
        """Remove it, if it is held."""
        if self._descriptor is None:
            return
        self._released.set()
        self._beats.join()
        with contextlib.suppress(OSError):  # it becomes stale
            if self._is_mine(self._content()):
                self._remove(self._is_mine)
        os.close(self._descriptor)
        self._descriptor = None

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        self._token = secrets.token_hex(8)
        self._names = f"{signature()}{self._token}\n"
        try:
            share_with_group(self.path)
            self._renew(descriptor, 0)
        except BaseException:
            self.path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._descriptor, self._released = descriptor, threading.Event()
        self._beats = threading.Thread(target=self._beat, args=(descriptor,), daemon=True)
        self._beats.start()
        return True

    def _beat(self, descriptor: int) -> None:
        beat = 0
        while not self._released.wait(BEAT_SECONDS):
            beat += 1
            with contextlib.suppress(OSError):  # the next one may get through
                self._renew(descriptor, beat)

    def _renew(self, descriptor: int, beat: int) -> None:
        os.pwrite(descriptor, f"{self._names}{beat:012}\n".encode(), 0)
        os.fsync(descriptor)

    def _content(self) -> bytes | None:
        try:
            return read(str(self.path))
        except FileNotFoundError:
            return None

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and self._token.encode() in content.splitlines()

    def _break(self) -> bool:
        """Remove the lease if it is stale. Returns whether it is gone."""
        content = self._content()
        return content is None or (self._is_stale(content) and self._remove(lambda found: found == content))

    def _is_stale(self, content: bytes) -> bool:
        now = time.monotonic()
        if content == self._seen:
            self._unchanged += min(now - self._looked, LEASE_SECONDS / LOOKS)
        else:
            self._seen, self._unchanged = content, 0.0
        self._looked = now
        if self._unchanged >= LEASE_SECONDS:
            return True
        try:
            return signer(content.decode())[0].ended()
        except ValueError:  # its holder is just writing it, or died then
            return False

    def _remove(self, is_right: Callable[[bytes], bool]) -> bool:
        """Remove the lease if it is the right one: by one step, after which it is looked at, so that only one can do it.

        The wrong one is put back. If it cannot, its holder has lost it and will notice.
        """
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self.path.rename(aside)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        try:
            right = is_right(read(str(aside)))
            if not right:
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
        except BadRecord:
            right = True
        aside.unlink(missing_ok=True)
        return right
