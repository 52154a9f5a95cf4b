"""Everything that a report shows: the papers' tables that suites fill, and generic tables of what else they ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from kdbench.report.captions import check_versions, differing_teachers
from kdbench.report.facts import Fact, by_key, once, run_facts, teacher_facts
from kdbench.report.formats import TOLERANCE, View
from kdbench.report.keys import Key, matched
from kdbench.report.layouts import layouts
from kdbench.report.measurement_tables import MeasurementTable, measurement_sheet, measurement_tables
from kdbench.report.measurements import likeness_facts, measurement_facts
from kdbench.report.printed import PrintedTable, fill, printed_sheet
from kdbench.report.rows import Row, collect
from kdbench.report.sheet import Sheet
from kdbench.report.tables import Table, make_tables, table_sheet
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
