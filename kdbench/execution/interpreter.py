"""New Python processes: they import what this one imports, and nothing from the working folder."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import kdbench
from kdbench.errors import BadInput


def interpreter(code: str) -> list[str]:
    """The command that runs ``code`` in a new process with this one's import path.

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
