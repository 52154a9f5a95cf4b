"""Tables of a suite's own: accuracies of methods and pairs of networks, and measurements on finished networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from kdbench.reporting.captions import (
    caption,
    empty_cells,
    origin_notes,
    provenance,
    score_rules,
    unequal_trials,
    unjudged,
)
from kdbench.reporting.cells import DECIMALS, best_positions, cell_texts, suffixes, summarise
from kdbench.reporting.keys import (
    CELL,
    GROUP,
    Group,
    Pair,
    grouped,
    measured_on,
    pair_text,
    published_for,
    split_method,
    tuples,
)
from kdbench.reporting.options import TOLERANCE, View
from kdbench.reporting.paired_tests import Samples
from kdbench.reporting.rendered import Emphasis, RenderedTable, Section, TableCell
from kdbench.reporting.statistics import not_separable


Teachers = Mapping[tuple[str, str, str], tuple[float, str]]
"""Test accuracy and version of finished teachers, by protocol, name and id."""


@dataclass(frozen=True, eq=False)
class GridTable:
    """The results of one group of runs. ``cells`` has one row per method and pair of networks, in order of appearance.

    ``teachers`` holds the teachers' accuracies and ``teacher_scores`` their rules; ``versions`` are those behind each run
    and teacher, "" where it is not known.
    """

    group: Group
    score: str
    cells: pd.DataFrame
    teachers: dict[str, float]
    versions: tuple[str, ...]
    notes: tuple[str, ...]
    teacher_scores: tuple[str, ...]
    samples: Samples

    @property
    def methods(self) -> list[str]:
        return self.samples.methods

    @property
    def pairs(self) -> list[Pair]:
        return self.samples.pairs

    @property
    def places(self) -> list[tuple[str, Pair]]:
        """Method and pair of each cell."""
        return [(method, (teacher, student)) for method, teacher, student in tuples(self.cells[CELL])]

    def best(self, pair: Pair) -> set[str]:
        """The methods with the highest mean of a column, as it is shown, over the trials that they share."""
        means = self.samples.shared_means(pair)
        shown = [round(mean, DECIMALS) for mean in means.values()]
        return {list(means)[at] for at in best_positions(shown)}


def grid_tables(runs: pd.DataFrame, teachers: Teachers | None = None) -> list[GridTable]:
    """One table for each suite, protocol, data set, scenario and strategy, in order of appearance."""
    cells = grouped(grid_cells(runs), GROUP)
    return [_grid_table(key, rows, cells[key], teachers or {}) for key, rows in grouped(runs, GROUP).items()]


def grid_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """The cells of all grid tables, each with the number that is published for the same training."""
    by = [*GROUP, *CELL]
    first = runs.drop_duplicates(by)
    keys = first.assign(metric="top1", method=[split_method(method)[0] for method in first["method"]])
    numbers = published_for(keys).reset_index(drop=True)
    cells = summarise(runs, by, "top1").reset_index().join(numbers)
    return cells.assign(percent=True, enough=2, decimals=DECIMALS)


def _grid_table(key: tuple[str, ...], runs: pd.DataFrame, cells: pd.DataFrame, finished: Teachers) -> GridTable:
    known = {
        (teacher, id): finished[protocol, teacher, id]
        for protocol, teacher, id in zip(runs["protocol"], runs["teacher"], runs["teacher_id"], strict=True)
        if (protocol, teacher, id) in finished
    }
    accuracies = {teacher: accuracy for (teacher, _), (accuracy, _) in known.items()}
    versions = {teacher: version for (teacher, _), (_, version) in known.items()}
    online = _online_teachers(runs)
    teachers = accuracies | online
    done = runs[runs["status"] == "done"].drop_duplicates("run_id")
    shown = runs[(runs["teacher_id"] != "") & runs["teacher"].isin(list(teachers))]
    return GridTable(
        group=Group(*key),
        score=runs["score"].iloc[0],
        cells=cells,
        teachers=teachers,
        versions=(*done["version"], *versions.values()),
        notes=origin_notes(runs),
        teacher_scores=tuple(dict.fromkeys((*shown["teacher_checkpoint"], *(["last"] if online else [])))),
        samples=Samples.of_runs(runs),
    )


def _online_teachers(runs: pd.DataFrame) -> dict[str, float]:
    """Mean test accuracy of the teachers that learned with their students: each trial and student has its own."""
    trials = runs.dropna(subset="teacher_top1").drop_duplicates(["teacher", "trial", "student"], keep="last")
    return {teacher: fmean(rows["teacher_top1"]) for (teacher,), rows in grouped(trials, ["teacher"]).items()}


def render_grid(
    table: GridTable, view: View, tolerance: float = TOLERANCE, tested: Samples | None = None
) -> RenderedTable:
    """A table as lines of text. With ``tested`` samples, every method not significantly different from the best is bold."""
    measured = view in (View.measured, View.both)
    bold = table.best if tested is None else partial(not_separable, tested)
    best = {pair: bold(pair) for pair in table.pairs} if measured else {}
    texts = zip(table.places, cell_texts(table.cells, view, tolerance), suffixes(table.cells, view), strict=True)
    emphasis = {True: Emphasis.best, False: Emphasis.none}
    cells = {
        (method, pair): TableCell(text, emphasis[method in best.get(pair, ())], suffix=suffix)
        for (method, pair), text, suffix in texts
    }
    lines = [
        (TableCell(method), *(cells.get((method, pair), TableCell("")) for pair in table.pairs))
        for method in table.methods
    ]
    if table.teachers and measured:
        accuracies = [table.teachers.get(teacher) for teacher, _ in table.pairs]
        texts_of = ("" if accuracy is None else f"{accuracy:.2f}" for accuracy in accuracies)
        lines.insert(0, tuple(map(TableCell, ("(teacher)", *texts_of))))
    images = measured_on(table.group.dataset)
    teachers = table.teacher_scores if measured else ()
    origin = provenance([table.group.protocol], [table.score], table.cells["n"], table.versions, images, teachers)
    compared = [values for (_, pair), values in zip(table.places, table.cells["values"], strict=True) if best.get(pair)]
    lacking = [
        (f"{method} on {pair_text(pair)}", note)
        for (method, pair), note in zip(table.places, table.cells["note"], strict=True)
    ]
    return RenderedTable(
        table.group.title,
        (Section((tuple(map(TableCell, ("method", *map(pair_text, table.pairs)))),), (tuple(lines),)),),
        caption=caption(f"Top-1 {images} accuracy in %", view, origin, tolerance, compared=any(table.cells["printed"]))
        + (_TESTED if tested and measured else ""),
        notes=(
            *unjudged(table.cells, view, tolerance),
            *table.notes,
            *unequal_trials(compared),
            *empty_cells(lacking),
        ),
    )


_TESTED = (
    " Bold: the best method, and every method not significantly different from it (paired t-test, α = 0.05, Holm per "
    "column), over the trials shared by all methods with at least two. A single trial is never bold."
)

METRICS = {
    "probe": "linear probe, top-1 in %",
    "kl": "KL, T = 4",
    "kl_t1": "KL, T = 1",
    "cka": "CKA",
    "class_correlation_difference": "|difference| of class correlations",
    "sm_score": "SM-score",
    "layer_cka": "CKA of associated layers",
}
"""The names of measurements in tables. Probes are the accuracies whose setting is a transfer."""


class Setting(NamedTuple):
    """The measurements of one table have this in common."""

    protocol: str
    teacher: str
    strategy: str
    trained_on: str


_SETTING = list(Setting._fields)


@dataclass(frozen=True, eq=False)
class MeasurementTable:
    """The measurements with one teacher. ``cells`` has one row per ``label``, ``dataset`` and ``column``."""

    setting: Setting
    observations: pd.DataFrame
    cells: pd.DataFrame

    @property
    def title(self) -> str:
        taught = f" with {self.setting.teacher}, {self.setting.strategy} teacher" if self.setting.teacher else ""
        return f"measured{taught}, trained on {self.setting.trained_on}"

    @property
    def versions(self) -> list[str]:
        """The version behind each finished measurement."""
        return versions_of(self.observations)


def versions_of(observations: pd.DataFrame) -> list[str]:
    """The version behind each network of which there is a value."""
    return observations.dropna(subset="value").drop_duplicates("run_id")["version"].tolist()


def measurement_tables(measured: pd.DataFrame) -> list[MeasurementTable]:
    """One table for each protocol, teacher, strategy and data set. Measurements that several suites name count once."""
    probes = measured["setting"].str.contains("transfer=")
    labelled = measured.assign(
        label=[_label(*row) for row in zip(measured["method"], measured["student"], measured["setting"], strict=True)],
        column=measured["metric"].mask(probes, "probe").map(METRICS),
    ).drop_duplicates([*_SETTING, "run_id", "metric", "label"])
    tables = []
    for key, rows in grouped(labelled, _SETTING).items():
        cells = summarise(rows, ["label", "dataset", "column"]).reset_index()
        decimals = [2 if column == METRICS["probe"] else 4 for column in cells["column"]]
        cells = cells.assign(decimals=decimals, published=nan, published_sd=nan, printed="", percent=False, enough=2)
        tables.append(MeasurementTable(Setting(*key), rows, cells))
    return tables


def _label(method: str, student: str, setting: str) -> str:
    varied = ", ".join(part for part in setting.split(",") if part and not part.startswith("transfer="))
    name = f"{method} ({varied})" if varied else method
    return f"{name} → {student}" if student else name


def render_measurements(table: MeasurementTable) -> RenderedTable:
    """A table as lines of text. The papers print nothing of this: there is one view."""
    observations, summaries = table.observations, table.cells
    columns = list(dict.fromkeys(zip(observations["dataset"], observations["column"], strict=True)))
    places = list(zip(summaries["label"], summaries["dataset"], summaries["column"], strict=True))
    texts = dict(zip(places, cell_texts(summaries, View.measured), strict=True))
    lines = [
        (TableCell(label), *(TableCell(texts.get((label, *column), "")) for column in columns))
        for label in dict.fromkeys(observations["label"])
    ]
    header = (
        (TableCell(""), *(TableCell(dataset) for dataset, _ in columns)),
        (TableCell("method"), *(TableCell(metric) for _, metric in columns)),
    )
    students = observations.loc[observations["method"] != "teacher", "label"]
    trials = summaries.loc[summaries["label"].isin(students), "n"]
    rules = score_rules(score for score in observations["score"] if score)
    origin = provenance([table.setting.protocol], [f"probes by {rules}"] if rules else [], trials, table.versions)
    lacking = (
        (f"{label} on {dataset} {column}", note)
        for (label, dataset, column), note in zip(places, summaries["note"], strict=True)
    )
    return RenderedTable(
        table.title,
        (Section(header, (tuple(lines),)),),
        caption=caption("Measured on finished networks", View.measured, origin, 0, compared=False),
        notes=tuple(empty_cells(lacking)),
    )
