"""Measurements that stand in no paper's table, as tables of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kdbench.report.captions import caption, empty_cells, provenance, score_rules
from kdbench.report.cells import Cell, cell_text, make_cell
from kdbench.report.facts import Fact
from kdbench.report.formats import View
from kdbench.report.measurements import METRICS
from kdbench.report.sheet import Band, Entry, Sheet


Column = tuple[str, str]
"""A data set, and what is measured on it."""


@dataclass
class MeasurementTable:
    """What was measured with one teacher: methods down, data sets and metrics across."""

    protocol: str
    teacher: str
    strategy: str
    trained_on: str
    facts: list[Fact] = field(default_factory=list)

    @property
    def title(self) -> str:
        taught = f" with {self.teacher}, {self.strategy} teacher" if self.teacher else ""
        return f"measured{taught}, trained on {self.trained_on}"

    @property
    def cells(self) -> dict[tuple[str, Column], Cell]:
        """By method with its student, and column; only where something was to be measured."""
        found: dict[tuple[str, Column], list[Fact]] = {}
        for fact in self.facts:
            found.setdefault((_row(fact), _column(fact)), []).append(fact)
        return {place: make_cell([(f.trial, f.value, f.reason) for f in facts]) for place, facts in found.items()}

    @property
    def versions(self) -> list[str]:
        """The version behind each measurement that was made."""
        return list({fact.run_id: fact.version for fact in self.facts if fact.value is not None}.values())


def measurement_tables(facts: Iterable[Fact]) -> list[MeasurementTable]:
    """One table for each protocol, teacher, strategy and data set. What several suites ask for counts once."""
    tables: dict[tuple[str, str, str, str], MeasurementTable] = {}
    places = {(_table(fact), fact.run_id, fact.about.metric, _row(fact)): fact for fact in facts}
    for (key, *_), fact in places.items():
        tables.setdefault(key, MeasurementTable(*key)).facts.append(fact)
    return list(tables.values())


def measurement_sheet(table: MeasurementTable) -> Sheet:
    """A table as lines of text. The papers print nothing of this: there is one view."""
    cells, columns = table.cells, list(dict.fromkeys(_column(fact) for fact in table.facts))
    lines = [
        (Entry(row), *(Entry(_text(cells.get((row, column)), column)) for column in columns))
        for row in dict.fromkeys(_row(fact) for fact in table.facts)
    ]
    header = (
        (Entry(""), *(Entry(dataset) for dataset, _ in columns)),
        (Entry("method"), *(Entry(metric) for _, metric in columns)),
    )
    students = {_row(fact) for fact in table.facts if fact.about.method != "teacher"}
    trials = [cell.n for (row, _), cell in cells.items() if row in students]
    rules = score_rules(fact.score for fact in table.facts if fact.score)
    origin = provenance([table.protocol], [f"probes by {rules}"] if rules else [], trials, table.versions)
    return Sheet(
        table.title,
        (Band(header, (tuple(lines),)),),
        caption=caption("Measured on finished networks", View.measured, origin, 0, compared=False),
        notes=tuple(empty_cells((f"{row} on {' '.join(column)}", cell.note) for (row, column), cell in cells.items())),
    )


def _table(fact: Fact) -> tuple[str, str, str, str]:
    return fact.protocol, fact.about.teacher, fact.about.strategy, fact.trained_on


def _column(fact: Fact) -> Column:
    name = "probe" if "transfer=" in fact.about.setting else fact.about.metric
    return fact.about.dataset, METRICS[name]


def _row(fact: Fact) -> str:
    setting = ", ".join(part for part in fact.about.setting.split(",") if part and not part.startswith("transfer="))
    named = f"{fact.about.method} ({setting})" if setting else fact.about.method
    return f"{named} → {fact.about.student}" if fact.about.student else named


def _text(cell: Cell | None, column: Column) -> str:
    return cell_text(cell, View.measured, decimals=2 if column[1] == METRICS["probe"] else 4)
