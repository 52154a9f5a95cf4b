"""The numbers that the papers print, read from reference.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from kdbench.report.keys import Key, matched
from kdbench.report.layouts import Place, layouts


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
    text = files("kdbench.report").joinpath("reference.csv").read_text(encoding="utf-8")
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
