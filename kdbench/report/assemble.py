"""Everything that a report shows: the papers' tables that suites fill, and generic tables of what else they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kdbench.errors import KdbenchError
from kdbench.report.captions import differing_teachers
from kdbench.report.facts import Fact, by_key, run_facts, teacher_facts
from kdbench.report.layouts import layouts
from kdbench.report.measurements import likeness_facts, measurement_facts, measurement_sheets
from kdbench.report.printed import PrintedTable, fill, printed_sheet
from kdbench.report.rows import Row, collect
from kdbench.report.sheet import Sheet
from kdbench.report.tables import Table, make_tables, table_sheet
from kdbench.report.views import TOLERANCE, View
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


@dataclass(frozen=True)
class Report:
    """Runs, values, the papers' tables, the generic ones, and the values of measurements that stand in neither."""

    printed: list[PrintedTable]
    rows: list[Row] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    measurements: list[Fact] = field(default_factory=list)

    def sheets(self, view: View = View.both, tolerance: float = TOLERANCE) -> list[Sheet]:
        """All tables, those of the papers first."""
        printed = [printed_sheet(table, view, tolerance) for table in self.printed]
        generic = [table_sheet(table, view, tolerance) for table in self.tables]
        return printed + generic + measurement_sheets(self.measurements)


def published_report(tables: Sequence[str] = ()) -> Report:
    """The papers' tables, all or those named, as they are printed."""
    known = layouts().tables
    return Report([fill(known[id], {}) for id in tables or known])


def measured_report(
    suites: Sequence[Suite], stores: Sequence[Store], tables: Sequence[str] = (), *, mix_versions: bool = False
) -> Report:
    """The named tables alone, or those that the suites fill and generic tables of whatever stands in none of these.

    Raises KdbenchError where numbers of incompatible versions of kdbench would stand in one table.
    """
    rows = collect(suites, stores)
    asked, recorded = measurement_facts(suites, stores), likeness_facts(rows)
    facts = [*run_facts(rows), *teacher_facts(rows, stores), *asked, *recorded]
    measured = by_key(facts)
    wanted = tables or dict.fromkeys(id for suite in suites for id in suite.tables)
    printed = [_noted(fill(layouts().tables[id], measured), rows) for id in wanted]
    rest = [] if tables else make_tables(_beyond(rows, printed, suites), stores)
    if not mix_versions:
        for table in printed:
            _check_versions(table.layout.id, (fact.version for fact in table.facts))
        for generic in rest:
            _check_versions(generic.title, generic.versions)
    shown = {(fact.run_id, fact.metric) for table in printed for fact in table.facts}
    apart = [fact for fact in asked if (fact.run_id, fact.metric) not in shown]
    return Report(printed, rows, facts, rest, [] if tables else apart)


def _beyond(rows: Sequence[Row], printed: Sequence[PrintedTable], suites: Sequence[Suite]) -> list[Row]:
    """The rows that stand in none of the papers' tables which their suite fills."""
    filling = {suite.name for suite in suites if suite.tables}
    shown = {fact.run_id for table in printed for fact in table.facts}
    return [row for row in rows if not (row.paper and row.run_id in shown and row.suite in filling)]


def _noted(table: PrintedTable, rows: Iterable[Row]) -> PrintedTable:
    """The table with a note where its runs' teachers differ between results folders."""
    shown = {fact.run_id for fact in table.facts}
    return replace(
        table, notes=differing_teachers(row.teachers for row in rows if {row.run_id, row.teacher_id} & shown)
    )


def _check_versions(name: str, versions: Iterable[str]) -> None:
    """Refuse numbers of kdbench versions that differ in more than the last figure."""
    counts = Counter(version for version in versions if version)
    if len({tuple(version.split(".")[:2]) for version in counts}) > 1:
        found = " and ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
        raise KdbenchError(
            f"{name}: its numbers come from kdbench {found}, which may train differently. Leave some out with --only or "
            "--results, run the suite again in a new results folder, or show them together with --mix-versions."
        )
