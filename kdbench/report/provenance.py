"""Where a report's numbers come from: machines, versions, suites, protocols, commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.report.sheet import Band, Entry, Sheet
from kdbench.suite.suite import Suite


_COLUMNS = ("device", "threads", "system", "kdbench", "torch", "numpy", "python")


@dataclass(frozen=True)
class Source:
    """A text that tells how runs came about, under its heading."""

    title: str
    text: str


def environments(abouts: Iterable[dict[str, Any]]) -> Sheet:
    """On what the runs were made: one line for each machine and set of versions, with runs and hours."""
    runs: Counter[tuple[str, ...]] = Counter()
    hours: dict[tuple[str, ...], float] = {}
    for about in abouts:
        key = _environment(about)
        runs[key] += 1
        seconds = about.get("seconds")
        hours.setdefault(key, 0.0)
        if isinstance(seconds, int | float) and 0 < seconds < 1e12:
            hours[key] += seconds / 3600
    lines = tuple(tuple(map(Entry, (*key, str(count), f"{hours[key]:.2f}"))) for key, count in runs.most_common())
    header = tuple(map(Entry, (*_COLUMNS, "runs", "hours")))
    caption = "Hours of training, as each run's share of its cohort; without teachers."
    return Sheet("Machines and versions", (Band((header,), (lines,)),), caption=caption)


def latest(abouts: Iterable[dict[str, Any]]) -> str:
    """When the last run was finished, or "" where that is not known."""
    return max((str(about.get("finished", "")) for about in abouts), default="")


def sources(suites: Sequence[Suite]) -> list[Source]:
    """The suites' files as they are, and every protocol they use, with all its values."""
    import yaml

    found = [Source(f"Suite {suite.name} ({Path(suite.file).name})", suite.text) for suite in suites]
    protocols = {run.protocol.name: run.protocol for suite in suites for run in suite.runs}
    for protocol in protocols.values():
        values = protocol.settings.model_dump(mode="json", exclude_defaults=True)
        used = {run.method for suite in suites for run in suite.runs if run.protocol.name == protocol.name}
        if methods := {name: terms for name, terms in values.pop("methods", {}).items() if name in used}:
            values["methods"] = methods
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
        found.append(Source(f"Protocol {protocol.name}", text))
    return found


def _environment(about: dict[str, Any]) -> tuple[str, ...]:
    device, versions = about.get("device"), about.get("versions")
    device = device if isinstance(device, dict) else {}
    versions = versions if isinstance(versions, dict) else {}
    found = {"device": device.get("name"), "threads": device.get("threads"), "system": about.get("system"), **versions}
    return tuple(str(found.get(column) or "?") for column in _COLUMNS)
