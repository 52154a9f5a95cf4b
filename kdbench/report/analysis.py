"""The statistics of all tables of a report: as sheets, as JSON, and as marks in the tables themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdbench.report.keys import Group, titles
from kdbench.report.paired import Difference
from kdbench.report.rows import Row
from kdbench.report.samples import Samples, samples_by_table
from kdbench.report.sheet import Line, Mark, Sheet
from kdbench.report.statistics import Statistics, compute_all, not_separable
from kdbench.report.statistics_sheets import statistics_sheets
from kdbench.report.tables import Table


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
