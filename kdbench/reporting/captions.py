"""Captions: rules, conditions and provenance of a table's numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.reporting.cells import difference, verdict
from kdbench.reporting.keys import tuples
from kdbench.reporting.options import View
from kdbench.reporting.rendered import RenderedTable, Section, TableCell
from kdbench.suite.suite import TINY, Suite


T = TypeVar("T")
_RULES = {
    "last": "accuracy after the last epoch",
    "best": "best epoch, chosen by {} accuracy",
    "last ten": "mean over the last ten epochs",
}


def caption(what: str, view: View, origin: str, tolerance: float, *, compared: bool) -> str:
    """What the cells of a view show, and their provenance. ``compared``: whether there is any published number."""
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
            " A teacher is trained once: one is enough."
        )
    return text


def provenance(
    protocols: Iterable[str],
    scores: Iterable[str],
    trials: Iterable[int],
    versions: Iterable[str],
    images: str = "test",
    teachers: Iterable[str] = (),
) -> str:
    """Protocol, score rule, trials and versions, in one line without a full stop.

    ``scores`` are names of rules, or rules in words; ``versions`` those of each number, "" where it is not known; ``images``
    are the measured ones; ``teachers`` are the rules of teachers' numbers, named where they differ from the others.
    """
    named = list(dict.fromkeys(protocols))
    protocol = ", ".join(named)
    students = list(dict.fromkeys(scores))
    others = [score for score in dict.fromkeys(teachers) if score not in students]
    own = f"teachers: {score_rules(others, images)}" if others else ""
    parts = [f"protocol {protocol}" if protocol else "", score_rules(students, images), own, trials_text(trials)]
    return "; ".join(part for part in (*parts, versions_text(versions), *warning(named)) if part)


def trials_text(counts: Iterable[int]) -> str:
    """``1 trial``, ``1-3 trials``: the fewest and the most of the cells that have any."""
    found = sorted({count for count in counts if count}) or [0]
    text = f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"
    return f"{text} {'trial' if text == '1' else 'trials'}"


def score_rules(scores: Iterable[str], images: str = "test") -> str:
    """Score rules in words."""
    return ", ".join(_RULES.get(score, score).format(images) for score in dict.fromkeys(scores) if score)


def unjudged(cells: pd.DataFrame, view: View, tolerance: float) -> tuple[str, ...]:
    """The note of a table under a view that compares with published numbers, where nothing can be compared."""
    if view not in (View.difference, View.verdict) or any(verdict(cells, tolerance)):
        return ()
    if not difference(cells).notna().any():
        return ("Nothing can be compared: no cell has both a measured and a published number of the same training.",)
    if view is View.difference:
        return ()
    return ("Nothing can be judged: these are no percentages, and the paper prints no deviations.",)


def unequal_trials(compared: Iterable[Mapping[int, float]]) -> tuple[str, ...]:
    """The note of a table whose marks compare cells, given by their values, that do not all have the same trials."""
    trials = {frozenset(values) for values in compared if values}
    note = (
        "Marks compare means over the trials that all compared cells share; a cell with a single trial is not compared."
    )
    return (note,) if len(trials) > 1 else ()


def warning(protocols: Iterable[str]) -> list[str]:
    """A warning where one of the protocols is a tiny one."""
    tiny = any(protocol.startswith(TINY) for protocol in protocols)
    return ["tiny runs on a few digits in the data's place, so these numbers mean nothing"] if tiny else []


def empty_cells(lacking: Iterable[tuple[str, str]], *, exactly: bool = False) -> list[str]:
    """Why cells are empty or short of trials, from each cell's place and reason: one line per kind, or per exact reason."""
    return truncate(f"{abbreviate(found)}: {reason}" for found, reason in by_reason(lacking, exactly=exactly))


def by_reason(lacking: Iterable[tuple[T, str]], *, exactly: bool = False) -> list[tuple[list[T], str]]:
    """The places grouped by the kind of their reason. Where only paths and counts differ, the kind alone is named."""
    kinds: dict[str, list[tuple[T, str]]] = {}
    for place, reason in lacking:
        if reason:
            kinds.setdefault(reason if exactly else _kind(reason), []).append((place, reason))
    found = []
    for kind, each in kinds.items():
        reasons = {reason for _, reason in each}
        example = f", for example {each[0][1]}" if "damaged" in kind or "…" in kind else ""
        found.append(([place for place, _ in each], each[0][1] if len(reasons) == 1 else kind + example))
    return found


def _kind(reason: str) -> str:
    """A reason without counts, epochs, paths and other figures."""
    bare = re.sub(r" \(\d+ of \d+\)", "", reason)
    bare = re.sub(r"in training, \d+ epochs so far", "in training", bare)
    bare = re.sub(r"damaged record: [^;]*", "damaged record", bare)
    return "; ".join(sorted({*re.sub(r"\S*[/\\]\S*|\d+", "…", bare).split("; ")}))


def truncate(lines: Iterable[str], limit: int = 6) -> list[str]:
    """The first lines, and how many more there are."""
    found = list(lines)
    return found if len(found) <= limit else [*found[: limit - 1], f"and {len(found) - limit + 1} more reasons"]


def abbreviate(places: Sequence[str]) -> str:
    """Up to three places, or two and how many more."""
    return ", ".join(places) if len(places) <= 3 else f"{', '.join(places[:2])} and {len(places) - 2} more"


def origin_notes(runs: pd.DataFrame) -> tuple[str, ...]:
    """A table's notes on what its finished runs do not have in common: teachers, versions of torch, devices.

    One line for each kind: teachers whose weights differ between results folders, or between runs, or whose file states
    another accuracy.
    """
    done = runs[runs["status"] == "done"].drop_duplicates("run_id")
    kinds = {"torch": "Trained with several versions of torch", "device": "Trained on several devices"}
    several = (f"{text} ({counts})." for column, text in kinds.items() if (counts := _several(done[column])))
    return (*_teacher_notes(runs, done), *several)


def _several(names: pd.Series) -> str:
    """``A: 3, B: 2`` where there are several; "" for one. What is not known is not counted."""
    counts = Counter(sorted(filter(None, names)))
    return _counted(counts) if len(counts) > 1 else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())


def _teacher_notes(runs: pd.DataFrame, done: pd.DataFrame) -> tuple[str, ...]:
    names = "; ".join(dict.fromkeys(filter(None, runs["teachers"])))
    rule = "the first is shown, and trials under different ones are not paired."
    differing = (f"Teachers differ between results folders: {names}; {rule}",) if names else ()
    taught = done[(done["teacher_sha256"] != "") & (done["teachers"] == "")]
    weights: dict[tuple[object, ...], Counter[str]] = {}
    for *teacher, sha256 in tuples(taught[[*_TEACHER, "teacher_sha256"]]):
        weights.setdefault(tuple(teacher), Counter())[f"{sha256:.8}"] += 1
    mixed = [f"{name} ({_counted(counts)})" for (name, *_), counts in weights.items() if len(counts) > 1]
    if mixed:
        note = f"Runs learned from different weights of {abbreviate(mixed)}: trials under these are not paired."
        differing = (*differing, note)
    return (*differing, *(f"{text}." for text in dict.fromkeys(filter(None, runs["teacher_stated"]))))


_TEACHER = ["teacher", "teacher_id", "suite", "protocol", "dataset", "strategy"]
"""The columns that name one teacher."""


def versions_text(versions: Iterable[str]) -> str:
    """``kdbench 0.1, 0.2; version unknown (3)`` from the version of each number, which is "" where it is not known."""
    counts = Counter(versions)
    unknown = counts.pop("", 0)
    parts = [f"kdbench {', '.join(sorted(counts))}"] if counts else []
    return "; ".join(parts + ([f"version unknown ({unknown})"] if unknown else []))


def check_versions(name: str, versions: Iterable[str]) -> None:
    """Raise KdbenchError for numbers of kdbench versions that differ in more than the last figure."""
    counts = Counter(version for version in versions if version)
    if len({tuple(version.split(".")[:2]) for version in counts}) > 1:
        found = " and ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
        raise KdbenchError(
            f"{name}: its numbers come from kdbench {found}, which may train differently. Leave some out with --only or "
            "--results, run the suite again in a new results folder, or show them together with --mix-versions."
        )


_COLUMNS = ("device", "threads", "system", "kdbench", "torch", "numpy", "python")


@dataclass(frozen=True)
class Source:
    """A file that defines runs, under its heading."""

    title: str
    text: str


def environments(metadata: Iterable[dict[str, Any]]) -> RenderedTable:
    """The machines that trained the runs: one line for each machine and set of versions, with runs and hours."""
    runs: Counter[tuple[str, ...]] = Counter()
    hours: dict[tuple[str, ...], float] = {}
    for each in metadata:
        key = _environment(each)
        runs[key] += 1
        seconds = each.get("seconds")
        hours.setdefault(key, 0.0)
        if isinstance(seconds, int | float) and 0 < seconds < 1e12:
            hours[key] += seconds / 3600
    lines = tuple(tuple(map(TableCell, (*key, str(count), f"{hours[key]:.2f}"))) for key, count in runs.most_common())
    header = tuple(map(TableCell, (*_COLUMNS, "runs", "hours")))
    caption = "Hours of training, as each run's share of its cohort; without teachers."
    return RenderedTable("Machines and versions", (Section((header,), (lines,)),), caption=caption)


def latest(metadata: Iterable[dict[str, Any]]) -> str:
    """When the last run finished, or "" where that is not known."""
    return max((str(each.get("finished", "")) for each in metadata), default="")


def sources(suites: Sequence[Suite]) -> list[Source]:
    """The suites' files as they are, and every protocol they use, with all its values."""
    import yaml

    found = [Source(f"Suite {suite.name} ({Path(suite.file).name})", suite.text) for suite in suites]
    protocols = {run.protocol.name: run.protocol for suite in suites for run in suite.runs}
    for protocol in protocols.values():
        values = protocol.written()
        used = {run.method for suite in suites for run in suite.runs if run.protocol.name == protocol.name}
        if methods := {name: terms for name, terms in values.pop("methods", {}).items() if name in used}:
            values["methods"] = methods
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
        found.append(Source(f"Protocol {protocol.name}", text))
    return found


def _environment(each: dict[str, Any]) -> tuple[str, ...]:
    device, versions = each.get("device"), each.get("versions")
    device = device if isinstance(device, dict) else {}
    versions = versions if isinstance(versions, dict) else {}
    found = {"device": device.get("name"), "threads": device.get("threads"), "system": each.get("system"), **versions}
    return tuple(str(found.get(column) or "?") for column in _COLUMNS)
