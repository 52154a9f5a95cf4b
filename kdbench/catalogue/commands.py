"""Commands that messages tell to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from kdbench.catalogue.printable import CONTROL


_USUAL = {"results": Path("results"), "data": Path("data")}


def command(*words: str, **folders: Path) -> str:
    """``kdbench show ID --results 'my results'``, quoted for a shell, without the ``folders`` that are the usual ones."""
    named = {name: folder for name, folder in folders.items() if folder != _USUAL[name]}
    options = [text for name, folder in named.items() for text in (f"--{name}", str(folder))]
    return shell_line(["kdbench", *words, *options])


def shell_line(words: Iterable[str]) -> str:
    """The words as they are typed in a shell, on one line of letters that can be printed."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if not CONTROL.search(word):
        return shlex.quote(word)
    escaped = re.sub(r"['\\]", r"\\\g<0>", word)
    return "$'" + CONTROL.sub(lambda found: _octal(found[0]), escaped) + "'"


def _octal(letter: str) -> str:
    """A letter's bytes; of half a character, the byte of a file's name that it stands for."""
    return "".join(f"\\{byte:03o}" for byte in letter.encode(errors="surrogateescape"))
