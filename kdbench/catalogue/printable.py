"""Texts from files and suites, made fit for a terminal."""

from __future__ import annotations

import re


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of surrogate pairs."""


def printable(text: str) -> str:
    """The text with escapes such as ``\\x1b`` for what would command the terminal. Ends of lines stay."""
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else _escape(found[0]), text)


def one_line(text: str, longest: int = 500) -> str:
    """The text on one line, printable, and cut where it is longer than so many characters."""
    line = CONTROL.sub(lambda found: _escape(found[0]), " ".join(text[: 4 * longest].split()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
