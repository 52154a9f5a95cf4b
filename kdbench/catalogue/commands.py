"""Commands that messages tell to type."""

from __future__ import annotations

import shlex
from pathlib import Path


_USUAL = {"results": Path("results"), "data": Path("data")}


def command(*words: str, **folders: Path) -> str:
    """``kdbench show ID --results 'my results'``, quoted for a shell, without the ``folders`` that are the usual ones."""
    named = {name: folder for name, folder in folders.items() if folder != _USUAL[name]}
    options = [text for name, folder in named.items() for text in (f"--{name}", str(folder))]
    return shlex.join(["kdbench", *words, *options])
