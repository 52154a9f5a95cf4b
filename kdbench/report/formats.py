"""The formats of a report, and what its tables can show. Read by the command line at every start, so it imports little."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from kdbench.report.analysis import Analysis
    from kdbench.report.assemble import Report
    from kdbench.report.sheet import Sheet


TOLERANCE = 0.5
"""Points by which a mean may differ from a printed number without deviation and still agree. SemCKD's printed deviations
have a median of 0.19; one printed trial and the mean of three then differ by less than 2 · 0.19 · √(1 + 1/3) = 0.44 in 19
cases of 20, if both are trained alike."""


class View(StrEnum):
    """What a table's cells show."""

    measured = "measured"
    published = "published"
    both = "both"
    difference = "difference"
    verdict = "verdict"


class Format(StrEnum):
    """How tables are written."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


class Bold(StrEnum):
    """What is bold in a table that is not a paper's: the best, or all that is not separable from it, too."""

    best = "best"
    separable = "separable"


@dataclass(frozen=True)
class Style:
    """What the formats leave open: a terminal's width and colour, whether LaTeX is a whole document, what is bold."""

    width: int = 160
    colour: bool = False
    standalone: bool = False
    bold: Bold = Bold.best


def write_report(
    report: Report,
    format: Format,
    view: View = View.both,
    tolerance: float = TOLERANCE,
    style: Style | None = None,
    statistics: Analysis | None = None,
) -> str:
    """A report as text. CSV holds the values themselves: the printed ones under the view `published`, else the measured."""
    if format is Format.csv:
        from kdbench.report.tidy import facts_csv, published_csv

        return published_csv(report.printed) if view is View.published else facts_csv(report.facts)
    if format is Format.json:
        from kdbench.report.tidy import json_text

        return json_text(report, tolerance, statistics)
    style = style or Style()
    sheets = report.sheets(view, tolerance)
    if style.bold is Bold.separable and view in (View.measured, View.both):
        from kdbench.report.analysis import mark_all_separable

        accuracies = len(report.printed) + len(report.tables)
        marked = mark_all_separable(sheets[:accuracies], report.tables, report.rows)
        sheets = [*marked, *sheets[accuracies:]]
    return write_sheets([*sheets, *(statistics.sheets() if statistics else ())], format, style)


def write_sheets(sheets: list[Sheet], format: Format, style: Style) -> str:
    """Tables as text, in a format for readers."""
    if format is Format.latex:
        from kdbench.report.latex import latex

        return latex(sheets, standalone=style.standalone)
    if format is Format.markdown:
        from kdbench.report.markdown import markdown

        return markdown(sheets)
    from kdbench.report.terminal import terminal

    return terminal(sheets, width=style.width, colour=style.colour)
