"""The numbers that the papers print, read from reference.csv."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from kdbench.report.rows import Row


@cache
def records() -> list[dict[str, str]]:
    """One mapping per printed cell of the three papers' 24 tables, in print order."""
    text = files("kdbench.report").joinpath("reference.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def _index() -> dict[tuple[str, ...], dict[str, str]]:
    index: dict[tuple[str, ...], dict[str, str]] = {}
    for record in records():
        if record["metric"] == "top1" and not record["scenario"] and record["value"] not in ("", "nan"):
            method = "ce" if record["method"] == "student" else record["method"]
            teachers = {record["teacher"], ""} if method == "ce" else {record["teacher"]}
            for teacher in teachers:
                key = (record["paper"], method, teacher, record["student"], record["dataset"], record["strategy"])
                index.setdefault(key, record)
    return index


def published(row: Row) -> str | None:
    """What the row's paper prints for the same setting, such as ``76.23`` or ``75.27 ± 0.13``; None where it does not.

    Only runs that are trained as the paper trains them, on the whole data set and without scenario, are comparable.
    """
    if not row.paper or row.scenario:
        return None
    key = (row.paper, row.method, row.teacher, row.student, row.dataset, row.strategy)
    plain = (row.paper, row.method, "", row.student, row.dataset, row.strategy)
    record = _index().get(key) or (_index().get(plain) if row.method == "ce" else None)
    if record is None:
        return None
    return record["value"] + (f" ± {record['std']}" if record["std"] else "")
