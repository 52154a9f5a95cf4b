"""What a number is about, in the spelling of reference.csv, and the numbers the papers print."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

from kdbench.catalogue.tables import Place, layouts
from kdbench.suite.specs import Scenario
from kdbench.suite.tiny import TINY


_PLAIN = {"student", "baseline", "ce"}
_USUAL = {"fewshot=1", "noise=0"}


Pair = tuple[str, str]
"""Teacher, or "", and student."""


def pair_text(pair: Pair) -> str:
    """``teacher → student``."""
    return " → ".join(name for name in pair if name)


class Group(NamedTuple):
    """The runs of a suite that stand in one table."""

    suite: str
    protocol: str
    dataset: str
    scenario: str
    strategy: str

    @property
    def title(self) -> str:
        parts = [self.dataset, self.scenario, f"{self.strategy} teacher"]
        return f"{self.suite}: {', '.join(part for part in parts if part)}"


def titles(groups: Iterable[Group]) -> dict[Group, str]:
    """The title of each group, with its protocol where another has the same."""
    found = {group: group.title for group in groups}
    counts = Counter(found.values())
    return {
        each: title if counts[title] == 1 else f"{title}, protocol {each.protocol}" for each, title in found.items()
    }


class Key(NamedTuple):
    """What a number is about, in the terms of reference.csv; ``matched`` is its one spelling."""

    paper: str
    method: str
    teacher: str
    student: str
    dataset: str
    strategy: str
    setting: str
    metric: str


@lru_cache(maxsize=4096)
def matched(key: Key) -> Key:
    """One spelling for all that is the same: the plain student has no teacher, the teacher no student."""
    setting = canonical_setting(key.setting)
    if key.method in _PLAIN:
        return key._replace(method="ce", teacher="", strategy="", setting=setting)
    if key.method == "teacher":
        return key._replace(student="", strategy="", setting=setting)
    return key._replace(setting=setting)


def tiny_paper(paper: str) -> str:
    """What stands for a paper in the keys of tiny runs, so that none of these equals a printed number's."""
    return TINY + paper if paper else ""


def canonical_setting(setting: str) -> str:
    """``noise=0.10,fewshot=1.0`` as ``noise=0.1``: sorted, numbers in one spelling, without what is the usual case."""
    parts = {_canonical(part.strip()) for part in setting.split(",") if part.strip()}
    return ",".join(sorted(parts - _USUAL))


def scenario_setting(scenario: Scenario, paper: str | None) -> str:
    """A scenario as the reference spells it: ``fewshot=0.25``, ``noise=0.1``; empty for the usual case.

    Wrong labels that are drawn otherwise than under the protocol of the ``paper`` say how: ``labels=classes``.
    """
    parts = [f"fewshot={scenario.fraction:g}"] if scenario.fraction < 1 else []
    parts += [f"noise={scenario.label_noise:g}"] if scenario.label_noise > 0 else []
    if scenario.label_noise > 0 and scenario.noise != _NOISE.get(paper or "", "other"):
        parts.append(f"labels={scenario.noise}")
    return ",".join(parts)


_NOISE = {"semckd": "all"}
"""How the papers' protocols draw wrong labels, where not from the other classes."""


def split_method(name: str) -> tuple[str, str]:
    """``ega-no-edge[node_weight=1.2]`` as the method and what a sweep varies of it: ``ega-no-edge``, ``node_weight=1.2``."""
    method, bracket, varied = name.partition("[")
    if not bracket or not varied.endswith("]") or "=" not in varied or not method:
        return name, ""
    return method, varied[:-1]


def _canonical(part: str) -> str:
    key, _, value = part.partition("=")
    try:
        return f"{key.strip()}={float(value):g}"
    except ValueError:
        return f"{key.strip()}={value.strip()}"


@dataclass(frozen=True)
class Published:
    """A printed number: ``text`` as it is printed, ``value`` None where that is `nan` or a dash."""

    key: Key
    value: float | None
    sd: float | None
    text: str


@cache
def records() -> list[dict[str, str]]:
    """One mapping per printed cell of the three papers' 24 tables, in print order."""
    text = files("kdbench.catalogue").joinpath("reference.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published(key: Key) -> Published | None:
    """The first number that is printed for this; None where none is."""
    return _index().get(matched(key))


def printed(place: Place) -> Published:
    """What is printed in a place of a table."""
    return _read(record(place))


def record(place: Place) -> dict[str, str]:
    """The record of reference.csv that stands in a place of a table."""
    wanted = {_COLUMNS.get(name, name): value for name, value in place.select.items()}.items()
    found = [each for each in _by_table()[place.layout.paper, place.layout.table] if wanted <= each.items()]
    return found[place.occurrence]


_COLUMNS = {"setting": "scenario"}
"""What reference.csv calls otherwise."""


@cache
def _by_table() -> dict[tuple[str, str], list[dict[str, str]]]:
    tables: dict[tuple[str, str], list[dict[str, str]]] = {}
    for each in records():
        tables.setdefault((each["paper"], each["table"]), []).append(each)
    return tables


@cache
def _index() -> dict[Key, Published]:
    index: dict[Key, Published] = {}
    for each in map(_read, records()):
        if each.value is not None:
            index.setdefault(each.key, each)
    return index


def _renamed(record: dict[str, str]) -> dict[str, str]:
    """SemCKD's CKA is that of layers in training, SSKD's that of finished embeddings."""
    return {"metric": "layer_cka"} if (record["paper"], record["metric"]) == ("semckd", "cka") else {}


def _read(record: dict[str, str]) -> Published:
    axes = ("paper", "method", "teacher", "student", "dataset", "strategy", "scenario", "metric")
    key = matched(Key(*({**record, **_renamed(record)}[name] for name in axes)))
    value, sd = record["value"], record["std"]
    if value in ("", "nan"):
        return Published(key, None, None, layouts().nan if value else layouts().dash)
    return Published(key, float(value), float(sd) if sd else None, value + (f" ± {sd}" if sd else ""))
