"""Names that people type: equal spellings, and the nearest right one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice


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
    """A text as a message shows it: cut where it is longer than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most - 4]} …{text[-1]}"


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first 20 of many. One that holds a comma itself stands in quotes."""
    shown = ", ".join(f"'{name}'" if "," in name else name for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def unknown(kind: str, name: str, candidates: Iterable[str], plural: str) -> str:
    """The sentence for a name that does not exist, e.g. ``unknown("model", "resnet8x5", networks(), "models")``."""
    match = nearest(name, candidates)
    hint = f" Did you mean '{match}'?" if match else ""
    return f"unknown {kind} '{shorten(name)}'.{hint}  (kdbench list {plural})"
