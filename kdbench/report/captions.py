"""What stands under a table: where its numbers come from, and why cells are empty."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.report.versions import versions_text
from kdbench.report.views import View


_RULES = {"last": "accuracy after the last epoch", "best": "best epoch, chosen by {} accuracy"}


def caption(what: str, view: View, origin: str, tolerance: float, *, compared: bool) -> str:
    """What a view's cells are and where they come from. ``compared``: whether there is any published number."""
    if view is View.published:
        return f"{what}, as published."
    shown = {View.difference: "measured minus published", View.verdict: "measured against published"}
    text = f"{what}, {shown.get(view, 'mean ± sd (n)')}; {origin}."
    if view is View.both and compared:
        text += " Behind the bar: the published number."
    if view is View.verdict:
        text += (
            " Agrees: within two published standard deviations, or"
            f" {tolerance:g} points where none is printed. Fewer than two trials are too few."
        )
    return text


def provenance(
    protocols: Iterable[str],
    scores: Iterable[str],
    trials: Iterable[int],
    versions: Iterable[str],
    images: str = "test",
) -> str:
    """Protocol, score rule, trials and versions, in one line without a full stop.

    ``scores`` are names of rules, or rules in words; ``versions`` those of each number, "" where it is not known; ``images``
    is what is measured on.
    """
    protocol = ", ".join(dict.fromkeys(protocols))
    rules = score_rules(scores, images)
    parts = [f"protocol {protocol}" if protocol else "", rules, trials_text(trials)]
    return "; ".join(part for part in (*parts, versions_text(versions)) if part)


def trials_text(counts: Iterable[int]) -> str:
    """``1 trial``, ``1-3 trials``: of how many the cells are made that have any."""
    found = sorted({count for count in counts if count}) or [0]
    text = f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"
    return f"{text} {'trial' if text == '1' else 'trials'}"


def score_rules(scores: Iterable[str], images: str = "test") -> str:
    """Score rules in words."""
    return ", ".join(_RULES.get(score, score).format(images) for score in dict.fromkeys(scores))


def empty_cells(lacking: Iterable[tuple[str, str]]) -> list[str]:
    """Why cells are empty or short of trials, one line per reason, from each cell's place and reason."""
    places: dict[str, list[str]] = {}
    for place, reason in lacking:
        if reason:
            places.setdefault(reason, []).append(place)
    return [f"{_some(found)}: {reason}" for reason, found in places.items()]


def _some(places: list[str]) -> str:
    return ", ".join(places) if len(places) <= 3 else f"{', '.join(places[:2])} and {len(places) - 2} more"


def differing_teachers(texts: Iterable[str]) -> tuple[str, ...]:
    """The note of a table whose runs come from results folders that hold different weights of a teacher."""
    names = "; ".join(dict.fromkeys(text for text in texts if text))
    rule = "the first is shown, and trials under different ones are not paired."
    return (f"Teachers differ between results folders: {names}; {rule}",) if names else ()
