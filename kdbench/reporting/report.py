"""One report: the runs and values of suites, all their tables, and their statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import pandas as pd

from kdbench.catalogue.tables import layouts
from kdbench.reporting.captions import check_versions
from kdbench.reporting.cells import SUMMARY, difference, verdict
from kdbench.reporting.keys import CELL, KEY, NUMBERS, canonical, split_method, titles, tuples
from kdbench.reporting.observations import OBSERVATION, collect, comparable, observations
from kdbench.reporting.options import TOLERANCE, Bold, ReportOptions, View
from kdbench.reporting.paper_tables import PaperTable, paper_tables, render_paper
from kdbench.reporting.rendered import RenderedTable
from kdbench.reporting.statistics import Statistics, compute_all
from kdbench.reporting.tables import (
    GridTable,
    MeasurementTable,
    Teachers,
    grid_tables,
    measurement_tables,
    render_grid,
    render_measurements,
)
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


@dataclass(frozen=True, eq=False)
class Report:
    """The numbers of suites in DataFrames and tables.

    ``runs`` has one row per run (``collect``), ``observations`` one per value. ``papers`` are the papers' tables, ``grids``
    the grid tables of all runs that these leave out, and ``measurements`` the tables of measurements that they leave out.
    ``all_grids`` are the grid tables of all runs.
    """

    papers: list[PaperTable]
    runs: pd.DataFrame = field(default_factory=lambda: collect((), ()))
    observations: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=OBSERVATION))
    grids: list[GridTable] = field(default_factory=list)
    measurements: list[MeasurementTable] = field(default_factory=list)
    all_grids: list[GridTable] = field(default_factory=list)
    suites: Sequence[Suite] = ()
    stores: Sequence[Store] = ()

    def tables(self, options: ReportOptions | None = None) -> list[RenderedTable]:
        """All tables as text, those of the papers first."""
        options = options or ReportOptions()
        view, tolerance = options.view, options.tolerance
        return [
            *(render_paper(table, view, tolerance) for table in self.papers),
            *(self.grid(table, options) for table in self.grids),
            *self.measurement_tables(view),
        ]

    def grid(self, table: GridTable, options: ReportOptions) -> RenderedTable:
        """A grid table as text."""
        tested = None
        if options.bold is Bold.separable:
            tested = next(each.samples for each in self.all_grids if each.group == table.group)
        return render_grid(table, options.view, options.tolerance, tested)

    def measurement_tables(self, view: View) -> list[RenderedTable]:
        """The tables of measurements as text. They have no published numbers: other views leave them out."""
        return list(map(render_measurements, self.measurements)) if view in (View.measured, View.both) else []

    def statistics(self, baseline: str | None = None) -> list[Statistics]:
        """The statistics of all grid tables. Raises BadInput for a baseline that none of them has."""
        return compute_all({table.group: table.samples for table in self.all_grids}, baseline)

    def frames(self, tolerance: float = TOLERANCE) -> dict[str, pd.DataFrame]:
        """The cells of each table by its title, or its id such as ``ega-1`` for a paper's.

        One row per cell: what it is about (`cell`, or `method`, `teacher`, `student`), `mean`, `sd`, `n`, `planned`, `note`,
        `published`, `published_sd`, `difference` and `verdict`.
        """
        names = titles(table.group for table in self.grids)
        papers = [
            (table.layout.id, table.cells.rename(columns={"name": "cell"}), ["cell", *KEY]) for table in self.papers
        ]
        grids = [(names[table.group], table.cells, CELL) for table in self.grids]
        about = ["label", "dataset", "column"]
        measurements = {table.title: table.cells[[*about, *SUMMARY]] for table in self.measurements}
        return {name: _compared(cells, about, tolerance) for name, cells, about in [*papers, *grids]} | measurements


def _compared(cells: pd.DataFrame, about: list[str], tolerance: float) -> pd.DataFrame:
    known = cells[[*about, *SUMMARY, *NUMBERS[:-1]]].reset_index(drop=True)
    return known.assign(difference=difference(known), verdict=verdict(cells, tolerance))


def published_report(tables: Sequence[str] = ()) -> Report:
    """The papers' tables, all or those named, as they are published."""
    nothing = Report([])
    known = tables or list(layouts().tables)
    measured = comparable(nothing.observations)
    return Report(paper_tables(known, measured, nothing.runs, lambda key: ""))


def measured_report(
    suites: Sequence[Suite], stores: Sequence[Store], tables: Sequence[str] = (), *, mix_versions: bool = False
) -> Report:
    """The named tables alone with their runs and values, or those that the suites fill and grid tables of all the rest.

    Raises KdbenchError where one table would mix numbers of incompatible versions of kdbench.
    """
    runs = collect(suites, stores)
    values = observations(suites, stores, runs)
    ids = tables or list(dict.fromkeys(id for suite in suites for id in suite.tables))
    tiny = any(suite.tiny for suite in suites)
    papers = paper_tables(ids, comparable(values), runs, _why_absent(suites, values), tiny=tiny)
    teachers = _finished_teachers(values)
    pair = ["run_id", "metric"]
    in_papers = pd.MultiIndex.from_frame(values[pair]).isin(
        [each for table in papers for each in tuples(table.observations[pair])]
    )
    measured = values[(values["trained_on"] != "") & ~in_papers]
    if tables:
        runs, values, measured = rows_in_tables(papers, runs), values[in_papers], measured[:0]
    all_grids = grid_tables(runs, teachers)
    rest = [] if tables else grid_tables(unpublished_runs(runs, papers, suites), teachers) if papers else all_grids
    measurements = measurement_tables(measured)
    if not mix_versions:
        for name, versions in (
            *((table.layout.id, table.versions) for table in papers),
            *((table.group.title, table.versions) for table in all_grids),  # HTML and statistics show all runs
            *((table.title, table.versions) for table in measurements),
        ):
            check_versions(name, versions)
    return Report(papers, runs, values, rest, measurements, all_grids, suites, stores)


def _finished_teachers(values: pd.DataFrame) -> Teachers:
    own = (values["method"] == "teacher") & (values["trained_on"] == "") & (values["metric"] == "top1")
    finished = values[own].dropna(subset="value")
    keys = tuples(finished[["protocol", "teacher", "run_id"]])
    return dict(zip(keys, tuples(finished[["value", "version"]]), strict=True))


def unpublished_runs(runs: pd.DataFrame, papers: Sequence[PaperTable], suites: Sequence[Suite]) -> pd.DataFrame:
    """The runs that are in none of the papers' tables which their suite fills."""
    filling = [suite.name for suite in suites if suite.tables]
    return runs[~(runs["suite"].isin(filling) & (runs["paper"] != "") & runs["run_id"].isin(_shown(papers)))]


def rows_in_tables(papers: Sequence[PaperTable], runs: pd.DataFrame) -> pd.DataFrame:
    """The runs in tables; those of a plain student, which has every teacher, only with others of the same teacher."""
    found = runs[runs["run_id"].isin(_shown(papers))]
    taught = canonical(found.assign(method=[split_method(method)[0] for method in found["method"]]))["teacher"] != ""
    pair = ["suite", "teacher", "student"]
    pairs = found.loc[taught, pair].drop_duplicates()
    return found.reset_index().merge(pairs, on=pair).set_index("index").sort_index() if len(pairs) else found


def _shown(papers: Sequence[PaperTable]) -> set[str]:
    return {id for table in papers for id in table.observations["run_id"]}


def _why_absent(suites: Sequence[Suite], values: pd.DataFrame) -> Callable[[tuple[str, ...]], str]:
    """For a key: whether --only left it out, or the suite trains it otherwise than the paper."""

    @cache
    def protocols() -> dict[tuple[str, ...], str]:
        """The protocol of each key without its paper."""
        known = canonical(values[[*KEY, "protocol"]].drop_duplicates())
        return dict(zip(tuples(known[KEY[1:]]), known["protocol"], strict=True))

    left_out: set[tuple[str, ...]] = set()
    if whole := [suite.whole for suite in suites if suite.whole]:
        planned = comparable(observations(whole, ()))
        left_out = set(tuples(planned[KEY]))

    def reason(key: tuple[str, ...]) -> str:
        if key in left_out:
            return "left out by --only"
        if protocol := protocols().get(key[1:]):
            return f"trained otherwise than in the paper (protocol {protocol})"
        return "not part of this suite"

    return reason
