"""Whether processes are still at work, on this machine and on others, whatever the clocks of the machines say."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self


class Process(NamedTuple):
    """A process that writes its name into a shared file: its number, its host's name, and what tells both from others.

    ``place`` is the boot of the machine and the namespace of the process numbers: two containers, or two machines, may have
    one name. ``started`` is when the process started, in the machine's ticks: numbers are used again. Both are "" where the
    system does not say.
    """

    pid: int
    host: str
    place: str
    started: str

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """A process of this machine."""
        return cls(pid, socket.gethostname(), _place(), _started(pid))

    @property
    def machine(self) -> str:
        """Where no two processes that live have one number, for the names of files: the host and a hash of the place."""
        return f"{self.host}-{sha256(self.place.encode()).hexdigest()[:8]}" if self.place else self.host

    def state(self) -> str:
        """What blocks the process, or ``gone`` if it has certainly ended; "" if nothing is known, as of one elsewhere."""
        if not self.place or self.place != _place():
            return ""
        return process_state(self.pid) if _started(self.pid) in ("", self.started) else "gone"

    def ended(self) -> bool:
        """Whether it is certain that the process has ended: it ran here, and it is gone or its number is another's."""
        return self.state() == "gone"


def signature() -> str:
    """What this process writes into a file that it holds, a line each: number, host, now by its clock, place and start."""
    me = Process.current()
    return "".join(f"{each}\n" for each in (me.pid, me.host, time.strftime("%Y-%m-%d %H:%M"), me.place, me.started))


def signer(text: str) -> tuple[Process, str]:
    """The process that a signature is of, and its time. Raises ValueError where there is no whole one."""
    pid, host, since, place, started, *_ = text.splitlines()
    return Process(int(pid), host, place, started), since


def process_state(pid: int) -> str:
    """The state that blocks a process of this machine; ``gone`` if it does not exist, "" if nothing known blocks it."""
    try:
        with contextlib.suppress(PermissionError):  # somebody else's
            os.kill(pid, 0)
        letter = _status(pid)[0]
    except (ProcessLookupError, OverflowError):
        return "gone"
    except (OSError, IndexError):
        return ""
    return {"T": "stopped", "t": "stopped by a debugger", "D": "held up by the system", "Z": "gone"}.get(letter, "")


def file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of a folder, in seconds: a file's age is this less its ``st_mtime``.

    On a network file system that is the server's clock. This machine's is taken where no file can be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.write(file.fileno(), b".")
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    try:
        return _status(pid)[19]
    except (OSError, IndexError):
        return ""


def _status(pid: int) -> list[str]:
    """The fields of a process' status from the third on, which is its state."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
