"""Processes that this one starts: how they end, and what a short-lived one answers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence


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
