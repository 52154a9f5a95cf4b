"""Child processes: the command that starts them, how they end, and short-lived ones that answer one question."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import kdbench
from kdbench.errors import BadInput, KdbenchError


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


def ask(
    code: str, request: Any = None, seconds: float | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new process, with ``request`` as JSON on its standard input and ``environment`` added to this one's.

    Raises TimeoutError where it takes longer than ``seconds``.
    """
    process = subprocess.Popen(
        interpreter(code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        output, errors = process.communicate(json.dumps(request), timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # a process that a driver or a file system holds up does not even die
        raise TimeoutError from None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def answer(code: str, request: Any, failure: str) -> str:
    """What a process answers. Raises BadInput with its words where it says that of the request, else KdbenchError."""
    done = ask(code, request)
    if done.returncode == BadInput.exit_code:
        raise BadInput(done.stderr.strip())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [exit_reason(done.returncode)])[-1]
        raise KdbenchError(f"{failure}: {reason}")
    return done.stdout
