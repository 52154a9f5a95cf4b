"""Names that people type: equal spellings, and the nearest right one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def normalise(name: str) -> str:
    """The form in which two spellings of a name are equal: lower case, '-' for '_'."""
    return name.strip().lower().replace("_", "-")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like ``name``, or None where nothing is near."""
    spellings: dict[str, str] = {}
    for candidate in candidates:
        spellings.setdefault(normalise(candidate), candidate)
    matches = get_close_matches(normalise(name), spellings, n=1, cutoff=0.6)
    return spellings[matches[0]] if matches else None


def unknown(kind: str, name: str, candidates: Iterable[str], plural: str) -> str:
    """The sentence for a name that does not exist, e.g. ``unknown("model", "resnet8x5", networks(), "models")``."""
    match = nearest(name, candidates)
    hint = f" Did you mean '{match}'?" if match else ""
    return f"unknown {kind} '{name}'.{hint}  (kdbench list {plural})"
