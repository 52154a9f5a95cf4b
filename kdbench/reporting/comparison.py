"""Several results folders: the differences between two of them cell by cell, and the conflicts between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from kdbench.reporting.captions import check_versions, empty_cells, score_rules, trials_text, versions_text
from kdbench.reporting.cells import SUMMARY, measured_text, summarise
from kdbench.reporting.keys import CELL, GROUP, Group, grouped, measured_on, pair_text, records, tuples
from kdbench.reporting.observations import collect
from kdbench.reporting.rendered import RenderedTable, Section, TableCell
from kdbench.reporting.teacher_weights import TeacherWeights, valid_result
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.suite.suite import Suite, measurement_specs, run_specs


@dataclass(frozen=True, eq=False)
class Comparison:
    """One group of runs in two folders.

    ``cells`` has one row for each cell of which either folder has something: what it is about (GROUP and CELL), mean,
    deviation and trials in both (`a_mean`, `b_mean` …), the `difference` of the runs that are `shared` (second minus first,
    NaN without any), how many are in one folder only (`a_alone`, `b_alone`), and the terms.
    """

    group: Group
    cells: pd.DataFrame
    table: RenderedTable

    def records(self) -> list[dict[str, Any]]:
        """One mapping per cell, None for what is missing."""
        columns = self.cells.astype(object)
        return records(columns.where(columns.notna(), None))


_COLUMNS = [
    *GROUP, *CELL, *(f"{side}_{name}" for side in "ab" for name in SUMMARY), "difference", "shared", "a_alone",
    "b_alone", "terms",
]  # fmt: skip


def compare(suites: Sequence[Suite], first: Store, second: Store, *, mix_versions: bool = False) -> list[Comparison]:
    """One comparison for each group of runs that either store has something of.

    Cells that several suites share are shown for the first of them. Raises KdbenchError where one table would mix numbers of
    incompatible versions of kdbench.
    """
    folders = (str(first.root), str(second.root))
    sides = [collect(suites, [store]) for store in (first, second)]
    by = [*GROUP, *CELL]
    a, b = (summarise(runs, by, "top1").add_prefix(f"{side}_") for side, runs in zip("ab", sides, strict=True))
    shown = (
        sides[0].groupby(by, sort=False).agg(ids=("run_id", lambda ids: tuple(sorted(ids))), terms=("terms", "first"))
    )
    cells = shown.join(a).join(b).reset_index()
    owner = cells.groupby([*by[1:], "ids"], sort=False)["suite"].transform("first")
    elsewhere = cells[owner != cells["suite"]].assign(owner=owner)
    cells = _with_differences(cells[owner == cells["suite"]])
    comparisons = []
    for key, part in grouped(cells, GROUP).items():
        group, places = Group(*key), pd.MultiIndex.from_frame(part[by])
        runs = [each[pd.MultiIndex.from_frame(each[by]).isin(places)] for each in sides]
        versions = [each.dropna(subset="top1").drop_duplicates("run_id")["version"].tolist() for each in runs]
        if not mix_versions:
            check_versions(group.title, [version for each in versions for version in each])
        measured = part[(part["a_n"] > 0) | (part["b_n"] > 0)].reset_index(drop=True)
        if len(measured):
            hidden = elsewhere[(elsewhere[GROUP] == list(key)).all(axis=1)]
            caption = _caption(group, runs[0]["score"], measured, versions, folders)
            table = _table(group, measured, hidden, caption, folders)
            comparisons.append(Comparison(group, measured[_COLUMNS], table))
    return comparisons


def _with_differences(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean difference over shared trials, how many there are, and how many of either folder are not among them."""
    pairs = zip(cells["a_values"], cells["b_values"], strict=True)
    differences = [[b[trial] - value for trial, value in a.items() if trial in b] for a, b in pairs]
    shared = [len(each) for each in differences]
    return cells.assign(
        difference=[fmean(each) if each else float("nan") for each in differences],
        shared=shared,
        a_alone=cells["a_n"] - shared,
        b_alone=cells["b_n"] - shared,
    )


def _table(
    group: Group, cells: pd.DataFrame, elsewhere: pd.DataFrame, caption: str, folders: tuple[str, str]
) -> RenderedTable:
    lines, notes = [], []
    for cell in records(cells):
        sides = [measured_text(*(cell[f"{side}_{name}"] for name in SUMMARY[:-1])) for side in "ab"]
        difference = f"{cell['difference']:+.2f} ({cell['shared']})" if cell["shared"] else "–"
        lines.append(tuple(map(TableCell, (_name(cell, ", "), *sides, difference))))
        notes.append((_name(cell), _left_out(cell, folders)))
    notes += [(_name(cell), f"shown under {cell['owner']}") for cell in records(elsewhere)]
    header = tuple(map(TableCell, ("method, networks", *folders, "difference")))
    return RenderedTable(
        group.title,
        (Section((header,), (tuple(lines),)),),
        caption=caption,
        notes=tuple(empty_cells(notes, exactly=True)),
    )


def _left_out(cell: dict[str, Any], folders: tuple[str, str]) -> str:
    """The trials of a cell that the difference leaves out, or ""."""
    if not (cell["a_n"] and cell["b_n"]):
        return f"only in {folders[0] if cell['a_n'] else folders[1]}"
    if not cell["shared"]:
        return "no trial is in both folders, so nothing is compared"
    alone = zip((cell["a_alone"], cell["b_alone"]), folders, strict=True)
    trials = [f"{trials_text([n])} only in {name}" for n, name in alone if n]
    return f"{', '.join(trials)}: left out of the difference" if trials else ""


def _caption(
    group: Group, scores: pd.Series, cells: pd.DataFrame, versions: list[list[str]], folders: tuple[str, str]
) -> str:
    images = measured_on(group.dataset)
    described = [
        ", ".join(filter(None, (f"{name}: {trials_text(cells[f'{side}_n'])}", versions_text(known))))
        for side, name, known in zip("ab", folders, versions, strict=True)
    ]
    difference = "difference: second minus first, mean over the trials that both have (n)"
    parts = [f"protocol {group.protocol}", score_rules(scores, images), *described, difference]
    return f"Top-1 {images} accuracy in %, mean ± sd (n); {'; '.join(parts)}."


def _name(cell: dict[str, Any], between: str = " on ") -> str:
    return f"{cell['method']}{between}{pair_text((cell['teacher'], cell['student']))}"


def changed_teachers(runs: pd.DataFrame) -> list[str]:
    """One message for each suite's teacher that has other weights now than those that taught its finished runs."""
    counts = Counter(tuples(runs.loc[runs["teacher_changed"].astype(bool), ["suite", "teacher"]]))
    return [
        f"{count} run{'s' if count > 1 else ''} of {suite} learned from other weights of {teacher} than are stored now, "
        "which the line (teacher) describes: kdbench verify names them"
        for (suite, teacher), count in counts.items()
    ]


def conflicts(suites: Sequence[Suite], stores: Sequence[Store]) -> list[str]:
    """One message for each teacher, run and measurement of which stores hold different ones; at most ten, and a count."""
    if len(stores) < 2:
        return []
    found = [
        *TeacherWeights(stores).conflicts(run_specs(suites)),
        *_runs(suites, stores),
        *_measurements(suites, stores),
    ]
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more on which the results folders disagree"] if more > 0 else found


_SHOWN = 10


def _runs(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    for run in {run.id: run for suite in suites for run in suite.runs}.values():
        found: dict[float, str] = {}
        for store in stores:
            result = valid_result(store.run(run.id))
            if result and (accuracy := result.accuracy(run.protocol.score)):
                found.setdefault(accuracy.top1, f"{accuracy.top1:.2f} in {store.root}")
        yield from _conflict(f"{run.label} ({run.id})", found.values())


def _measurements(suites: Sequence[Suite], stores: Sequence[Store]) -> Iterator[str]:
    for spec in {spec.id: spec for spec in measurement_specs(suites)}.values():
        found: dict[str, str] = {}
        for store in stores:
            if result := store.measured(spec):
                found.setdefault(text := _text(result), f"{text} in {store.root}")
        yield from _conflict(f"{spec.label} ({spec.id})", found.values())


def _conflict(name: str, found: Collection[str]) -> Iterator[str]:
    if len(found) > 1:
        yield f"{name}: {', '.join(found)}; the first is shown"


def _text(result: Result) -> str:
    """A measurement in few words."""
    values = result.values or {"top-1": result.last.top1 if result.last else 0.0}
    best = {"best": result.best.top1} if result.best else {}
    return " ".join(f"{name} {value:.4f}" for name, value in {**values, **best}.items())
