"""Processes that this one starts: their command, how they end, and what a short-lived one answers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import kdbench
from kdbench.errors import BadInput


def interpreter(code: str) -> list[str]:
    """The command that runs ``code`` in a new process with this one's import path, without the working folder.

    Raises BadInput where the import path has another kdbench than the one that runs.
    """
    path = [entry for entry in sys.path if entry]  # "" is the working folder, wherever that is
    own = Path(kdbench.__file__)
    found = PathFinder.find_spec("kdbench", path)
    if found is None or found.origin is None:  # a folder of this name is no package beside one
        path.append(str(own.parents[1]))
    elif not own.samefile(found.origin):
        raise BadInput(
            f"this is the kdbench of {own.parent}, but Python imports that of {Path(found.origin).parent}: install the one "
            "that you want (pip install -e FOLDER), or run that one from another folder"
        )
    return [sys.executable, "-P", "-c", f"import sys\nsys.path[:] = {path!r}\n{code}"]


def exit_reason(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (": out of memory, or a batch system's limit?" if -code == signal.SIGKILL else "")


def answer(command: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process. Raises TimeoutError where it takes longer."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # a process that a driver or a file system holds up does not even die
        raise TimeoutError from None
    return process.returncode, out, errors
