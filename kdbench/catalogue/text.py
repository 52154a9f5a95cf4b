"""Text for people: names and the nearest right one, commands for a shell, control characters made visible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path


LONGEST = 200
"""Letters of the longest name that a user may give to something."""


def normalise(name: str) -> str:
    """The form in which two spellings of a name are equal: lower case, '-' for '_'."""
    return name.strip().lower().replace("_", "-")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like ``name``, or None where nothing is near.

    Only the first 300 are compared, and only names of up to 80 letters: what takes longer is no help to anybody.
    """
    if len(name) > 80:
        return None
    spellings: dict[str, str] = {}
    for candidate in islice(candidates, 300):
        if len(candidate) <= 80:
            spellings.setdefault(normalise(candidate), candidate)
    match = _closest(normalise(name), tuple(spellings))
    return spellings[match] if match is not None else None


@lru_cache(maxsize=4096)
def _closest(name: str, spellings: tuple[str, ...]) -> str | None:
    return next(iter(get_close_matches(name, spellings, n=1, cutoff=0.6)), None)


def shorten(text: str, most: int = 60) -> str:
    """A text for a message, truncated to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 4]} …{text[-1]}"


def listed(names: Sequence[str]) -> str:
    """Names joined by commas, at most 20. One that contains a comma is quoted."""
    shown = ", ".join(f"'{name}'" if "," in name else name for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def first_few(names: Sequence[str]) -> str:
    """The first five of many things that are wrong, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def unknown(kind: str, name: str, candidates: Iterable[str], plural: str) -> str:
    """The sentence for a name that does not exist, e.g. ``unknown("model", "resnet8x5", networks(), "models")``."""
    match = nearest(name, candidates)
    hint = f" Did you mean '{match}'?" if match else ""
    return f"unknown {kind} '{shorten(name)}'.{hint}  (kdbench list {plural})"


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of surrogate pairs."""


def printable(text: str) -> str:
    """The text with escapes such as ``\\x1b`` for what would command the terminal. Ends of lines stay."""
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else _escape(found[0]), text)


def one_line(text: str, longest: int = 500) -> str:
    """The text on one printable line, truncated to ``longest`` characters."""
    line = CONTROL.sub(lambda found: _escape(found[0]), " ".join(text[: 4 * longest].split()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


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


def file_size(count: float) -> str:
    """Bytes as ``1.2 GB`` or ``34.5 MB``."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
