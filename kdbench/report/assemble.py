"""One report: all tables of a suite, and their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from kdbench.catalogue.tables import layouts
from kdbench.report.captions import check_versions, differing_teachers
from kdbench.report.measurements import (
    MeasurementTable,
    likeness_facts,
    measurement_facts,
    measurement_sheet,
    measurement_tables,
)
from kdbench.report.observations import Fact, Row, by_key, collect, once, run_facts, teacher_facts
from kdbench.report.options import TOLERANCE, View
from kdbench.report.paired_tests import Difference, Samples, samples_by_table
from kdbench.report.published import Group, Key, matched, titles
from kdbench.report.sheet import Line, Mark, Sheet
from kdbench.report.statistics import Statistics, compute_all, not_separable, statistics_sheets
from kdbench.report.tables import PrintedTable, Table, fill, make_tables, printed_sheet, table_sheet
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class Report:
    """Runs, values, the papers' tables, the generic ones of what they leave, and those of measurements that stand in neither.

    ``whole`` are the generic tables of all runs, also of those that stand in the papers' tables.
    """

    printed: list[PrintedTable]
    rows: list[Row] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    measurements: list[MeasurementTable] = field(default_factory=list)
    whole: list[Table] = field(default_factory=list)

    def sheets(self, view: View = View.both, tolerance: float = TOLERANCE) -> list[Sheet]:
        """All tables, those of the papers first. Measurements have no printed numbers: other views leave them out."""
        printed = [printed_sheet(table, view, tolerance) for table in self.printed]
        generic = [table_sheet(table, view, tolerance) for table in self.tables]
        return printed + generic + self.measurement_sheets(view)

    def measurement_sheets(self, view: View) -> list[Sheet]:
        """The tables of measurements, under the views that show what was measured."""
        return list(map(measurement_sheet, self.measurements)) if view in (View.measured, View.both) else []


def published_report(tables: Sequence[str] = ()) -> Report:
    """The papers' tables, all or those named, as they are printed."""
    known = layouts().tables
    return Report([fill(known[id], {}) for id in tables or known])


def measured_report(
    suites: Sequence[Suite], stores: Sequence[Store], tables: Sequence[str] = (), *, mix_versions: bool = False
) -> Report:
    """The named tables alone with their runs and values, or those that the suites fill and generic ones of all the rest.

    Raises KdbenchError where numbers of incompatible versions of kdbench would stand in one table.
    """
    rows = collect(suites, stores)
    asked, recorded = measurement_facts(suites, stores), likeness_facts(rows)
    facts = once((*run_facts(rows), *teacher_facts(rows, stores), *asked, *recorded))
    measured = by_key(facts)
    wanted = tables or dict.fromkeys(id for suite in suites for id in suite.tables)
    tiny = any(suite.tiny for suite in suites)
    absent = _why_absent(suites, facts)
    printed = [_noted(fill(layouts().tables[id], measured, absent, tiny=tiny), rows) for id in wanted]
    shown = {(fact.run_id, fact.about.metric) for table in printed for fact in table.facts}
    if tables:
        rows = _standing_in(printed, rows)
        facts = [fact for fact in facts if (fact.run_id, fact.about.metric) in shown]
    whole = make_tables(rows, stores)
    rest = [] if tables else make_tables(_beyond(rows, printed, suites), stores) if printed else whole
    apart = measurement_tables(fact for fact in asked if (fact.run_id, fact.about.metric) not in shown and not tables)
    if not mix_versions:
        for table in printed:
            check_versions(table.layout.id, table.versions)
        for generic in whole:  # HTML and statistics show all rows, not only the rest
            check_versions(generic.group.title, generic.versions)
        for measurement in apart:
            check_versions(measurement.title, measurement.versions)
    return Report(printed, rows, facts, rest, apart, whole)


def _beyond(rows: Sequence[Row], printed: Sequence[PrintedTable], suites: Sequence[Suite]) -> list[Row]:
    """The rows that stand in none of the papers' tables which their suite fills."""
    filling = {suite.name for suite in suites if suite.tables}
    shown = {fact.run_id for table in printed for fact in table.facts}
    return [row for row in rows if not (row.suite in filling and row.paper and row.run_id in shown)]


def _standing_in(printed: Sequence[PrintedTable], rows: Sequence[Row]) -> list[Row]:
    """The rows that stand in tables; a plain student's, which is every teacher's, only beside others of its teacher."""
    shown = {fact.run_id for table in printed for fact in table.facts}
    found = [row for row in rows if row.run_id in shown]
    pairs = {(row.suite, row.teacher, row.student) for row in found if matched(row.about("top1")).teacher}
    return [row for row in found if not pairs or (row.suite, row.teacher, row.student) in pairs]


def _noted(table: PrintedTable, rows: Iterable[Row]) -> PrintedTable:
    """The table with a note where its runs' teachers differ between results folders."""
    shown = {fact.run_id for fact in table.facts}
    return replace(
        table, notes=differing_teachers(row.teachers for row in rows if {row.run_id, row.teacher_id} & shown)
    )


def _why_absent(suites: Sequence[Suite], facts: Sequence[Fact]) -> Callable[[Key], str]:
    """For what a cell is about: whether --only left it out, or the suite trains it otherwise than the paper."""

    @cache
    def otherwise() -> dict[Key, str]:
        protocols = {fact.about: fact.protocol for fact in facts}
        return {_anyone(matched(key)): protocol for key, protocol in protocols.items()}

    left_out: set[Key] = set()
    whole = [suite.whole for suite in suites if suite.whole]
    if whole:
        rows = collect(whole, ())
        planned = (*run_facts(rows), *teacher_facts(rows, ()), *likeness_facts(rows), *measurement_facts(whole, ()))
        left_out = {matched(fact.about) for fact in planned if fact.about.paper}

    def reason(key: Key) -> str:
        if key in left_out:
            return "left out by --only"
        if protocol := otherwise().get(_anyone(key)):
            return f"trained otherwise than in the paper (protocol {protocol})"
        return "not part of this suite"

    return reason


def _anyone(key: Key) -> Key:
    """The same under whosever training."""
    return key._replace(paper="")


@dataclass(frozen=True)
class Analysis:
    """The single trials of all settings and, where wanted, their statistics."""

    samples: dict[Group, Samples]
    statistics: list[Statistics]

    def sheets(self) -> list[Sheet]:
        """The statistics as tables."""
        names = titles(self.samples)
        return [sheet for each in self.statistics for sheet in statistics_sheets(each, names[each.group])]

    def json(self) -> list[dict[str, Any]]:
        """The statistics as JSON-ready values, one mapping per setting; what could not be computed is null."""
        return [_json(each) for each in self.statistics]


def analyse(rows: Sequence[Row], baseline: str | None = None) -> Analysis:
    """Compare all methods with a baseline. Raises BadInput for a baseline that is nowhere."""
    samples = samples_by_table(rows)
    return Analysis(samples, compute_all(samples, baseline))


def mark_separable(sheet: Sheet, table: Table, samples: Samples) -> Sheet:
    """The sheet of a table with the best of each column bold, and what a test does not tell from it."""
    kept = [not_separable(samples, pair) for pair in table.pairs]

    def marked(method: str, entries: Line) -> Line:
        marks = [Mark.best if method in found else Mark.none for found in kept]
        return (entries[0], *(replace(entry, mark=mark) for entry, mark in zip(entries[1:], marks, strict=True)))

    (band,) = sheet.bands
    (lines,) = band.parts
    first = len(lines) - len(table.methods)  # below the teachers' line, whatever the methods are called
    own = map(marked, table.methods, lines[first:])
    rule = (
        " Bold: the best over the trials that all methods with two or more share, and what a paired t-test over trials does "
        "not tell from it (α = 0.05, Holm over the column); a single trial is not tested, and not bold."
    )
    parts = ((*lines[:first], *own),)
    return replace(sheet, bands=(replace(band, parts=parts),), caption=sheet.caption + rule)


def mark_all_separable(sheets: Sequence[Sheet], tables: Sequence[Table], rows: Iterable[Row]) -> list[Sheet]:
    """The same for a report's sheets, the last of which are those of ``tables``; those of papers stay as they are."""
    samples = samples_by_table(list(rows))
    first = len(sheets) - len(tables)
    marked = (mark_separable(sheet, t, samples[t.group]) for sheet, t in zip(sheets[first:], tables, strict=True))
    return [*sheets[:first], *marked]


def _json(found: Statistics) -> dict[str, Any]:
    return {
        **found.group._asdict(),
        "baseline": found.baseline,
        "first": found.first,
        "trials": list(_comparisons(found)),
        "pairs": [
            {
                "method": each.method,
                **_difference(each.difference, each.corrected),
                "won": each.won,
                "lost": each.lost,
                "ari_over_baseline": asdict(each.over_baseline),
                "ari_of_first": asdict(each.of_first),
            }
            for each in found.overall
        ],
        "detectable": [
            {
                "teacher": each.pair[0],
                "student": each.pair[1],
                "trials": each.trials,
                "sd": each.sd,
                "difference": each.detectable,
                "difference_holm": each.corrected,
            }
            for each in found.sensitivity
        ],
        "ranking": asdict(found.ranking),
    }


def _comparisons(found: Statistics) -> Iterator[dict[str, Any]]:
    for each in found.comparisons:
        teacher, student = each.pair
        place = {"method": each.method, "teacher": teacher, "student": student}
        yield {**place, **_difference(each.difference, each.corrected)}


def _difference(difference: Difference, corrected: float | None) -> dict[str, Any]:
    return {**asdict(difference), "p_holm": corrected}
