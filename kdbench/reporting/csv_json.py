"""Reports and comparisons for programs: CSV with one line for each value or cell, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.catalogue.text import printable
from kdbench.reporting.cells import SUMMARY, difference, verdict
from kdbench.reporting.comparison import Comparison
from kdbench.reporting.keys import CELL, GROUP, KEY, records, tuples
from kdbench.reporting.observations import OBSERVATION
from kdbench.reporting.paired_tests import Difference
from kdbench.reporting.paper_tables import PaperTable
from kdbench.reporting.report import Report
from kdbench.reporting.statistics import Statistics


_LAST = OBSERVATION.index("terms")
COLUMNS = [*OBSERVATION[1:_LAST], "suites", "terms"]
"""Of a value: what it is about, the value, and how it came about."""


def observations_csv(observations: pd.DataFrame) -> str:
    """One line per value; an empty ``value`` where there is none. A text that a spreadsheet would run gets an apostrophe.

    Suites that name the same run are joined with ``; ``.
    """
    rows = _merged_observations(observations)
    return _csv(rows.assign(suites=rows["suites"].str.join("; ")))


def _merged_observations(observations: pd.DataFrame) -> pd.DataFrame:
    return _merge_suites(observations, [*KEY, "protocol", "run_id"])[COLUMNS]


def _merge_suites(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The first row of each group, with all suites that name it in the column ``suites``."""
    suites: dict[int, dict[str, None]] = {}
    for place, suite in zip(frame.groupby(by, sort=False).ngroup(), frame["suite"], strict=True):
        suites.setdefault(place, {})[suite] = None
    merged = pd.Series([list(names) for names in suites.values()], dtype=object)
    return frame.drop_duplicates(by).drop(columns="suite").assign(suites=merged.to_numpy())


def published_csv(tables: Sequence[PaperTable]) -> str:
    """One line per cell of the papers' tables, in print order; an empty ``value`` where print has `nan` or a dash."""
    columns = ["table", "name", *KEY, "published", "published_sd", "printed"]
    cells = pd.concat([table.cells for table in tables]) if tables else pd.DataFrame(columns=columns)
    known = cells.loc[cells["printed"] != "", columns]
    return _csv(known.rename(columns={"name": "cell", "published": "value", "published_sd": "sd"}))


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per cell of a comparison of two results folders."""
    return _csv(pd.DataFrame([cell for comparison in comparisons for cell in comparison.records()], dtype=object))


def comparison_json(comparisons: Sequence[Comparison], folders: Sequence[Path]) -> str:
    """The two folders, and the cells of their comparison."""
    first, second = map(str, folders)
    cells = [_with_terms(each) for comparison in comparisons for each in comparison.records()]
    return _json({"a": first, "b": second, "cells": cells})


def _csv(frame: pd.DataFrame) -> str:
    texts = frame.select_dtypes(exclude="number").columns
    return str(frame.assign(**frame[texts].map(_safe)).to_csv(index=False, lineterminator="\n"))


def _safe(text: Any) -> Any:
    """A text, printable, behind an apostrophe where a spreadsheet would take it for a formula; other values as they are."""
    if not isinstance(text, str):
        return text
    return printable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def _without_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with None for what is missing."""
    values = frame.astype(object)
    return values.where(frame.notna(), None)


def json_text(report: Report, tolerance: float, statistics: Sequence[Statistics] | None = None) -> str:
    """The runs (accuracies after the last and the best epoch), the values, the cells of all tables, and statistics."""
    content: dict[str, Any] = {
        "runs": _runs(report.runs),
        "facts": _records(_merged_observations(report.observations)),
        "cells": [*_papers(report, tolerance), *_grids(report, tolerance), *_measurements(report, tolerance)],
    }
    if statistics is not None:
        content["statistics"] = [_statistics(each) for each in statistics]
    return _json(content)


def _runs(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The runs, each once in every place of a table that it has, with the suites that name it there."""
    merged = _merge_suites(runs, ["run_id", "trial", *CELL, *GROUP[1:]])
    return _records(merged[["suites", *merged.columns.drop("suites")]])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_with_terms(row) for row in records(_without_nan(frame))]


def _with_terms(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "terms": _parsed(values["terms"] or "{}")}


@cache
def _parsed(terms: str) -> Any:
    return json.loads(terms)


def _json(content: dict[str, Any]) -> str:
    """An object whose lists have one item per line: Python's encoder with indentation takes seconds for 10,000 runs."""
    encode = json.JSONEncoder(allow_nan=False).encode
    parts = []
    for key, value in content.items():
        items = ",\n  ".join(map(encode, value)) if isinstance(value, list) else ""
        parts.append(f"{encode(key)}: " + (f"[\n  {items}\n ]" if items else encode(value)))
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _papers(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.papers:
        keys = records(table.cells[["table", "name", *KEY]].rename(columns={"name": "cell"}))
        for key, printed, values in zip(keys, table.cells["printed"], _values(table.cells, tolerance), strict=True):
            yield {**(key if printed else {name: key[name] for name in ("table", "cell")}), **values}


def _grids(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.grids:
        group = {**table.group._asdict(), "score": table.score}
        for about, values in zip(records(table.cells[CELL]), _values(table.cells, tolerance), strict=True):
            yield {**group, **about, **values}


def _measurements(report: Report, tolerance: float) -> Iterator[dict[str, Any]]:
    for table in report.measurements:
        protocol, teacher, strategy, _ = table.setting
        places = tuples(table.cells[["label", "dataset", "column"]])
        for (method, dataset, metric), values in zip(places, _values(table.cells, tolerance), strict=True):
            about = {"protocol": protocol, "teacher": teacher, "strategy": strategy, "method": method}
            yield {**about, "dataset": dataset, "metric": metric, **values}


def _values(cells: pd.DataFrame, tolerance: float) -> Iterator[dict[str, Any]]:
    """Of each cell: the measured and the published number, and how they compare."""
    compared = cells.assign(difference=difference(cells), verdict=verdict(cells, tolerance))
    for cell in records(_without_nan(compared)):
        number = {"value": cell["published"], "sd": cell["published_sd"], "text": cell["printed"]}
        yield {
            **{name: cell[name] for name in SUMMARY},
            "published": number if cell["printed"] else None,
            "difference": cell["difference"],
            "verdict": cell["verdict"] or None,
        }


def _statistics(each: Statistics) -> dict[str, Any]:
    """The statistics of one table; null for what could not be computed."""
    return {
        **each.group._asdict(),
        "baseline": each.baseline,
        "first": each.first,
        "trials": [
            {"method": found.method, "teacher": found.pair[0], "student": found.pair[1]}
            | _difference(found.difference, found.corrected)
            for found in each.comparisons
        ],
        "pairs": [
            {
                "method": found.method,
                **_difference(found.difference, found.corrected),
                "won": found.won,
                "lost": found.lost,
                "ari_over_baseline": asdict(found.over_baseline),
                "ari_of_first": asdict(found.of_first),
            }
            for found in each.overall
        ],
        "detectable": [
            {
                "teacher": found.pair[0],
                "student": found.pair[1],
                "trials": found.trials,
                "sd": found.sd,
                "difference": found.detectable,
                "difference_holm": found.corrected,
            }
            for found in each.sensitivity
        ],
        "ranking": asdict(each.ranking),
    }


def _difference(difference: Difference, corrected: float | None) -> dict[str, Any]:
    return {**asdict(difference), "p_holm": corrected}
