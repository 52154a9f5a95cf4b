"""The formats of a report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from kdbench.report.views import TOLERANCE, View


if TYPE_CHECKING:
    from kdbench.report.assemble import Report
    from kdbench.report.sheet import Sheet


class Format(StrEnum):
    """How tables are written."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class Style:
    """What the formats leave open: a terminal's width and colour, whether LaTeX is a whole document."""

    width: int = 160
    colour: bool = False
    standalone: bool = False


def write_report(
    report: Report, format: Format, view: View = View.both, tolerance: float = TOLERANCE, style: Style | None = None
) -> str:
    """A report as text. CSV holds the values themselves: the printed ones under the view `published`, else the measured."""
    if format is Format.csv:
        from kdbench.report.csv_text import facts_csv, published_csv

        return published_csv(report.printed) if view is View.published else facts_csv(report.facts)
    if format is Format.json:
        from kdbench.report.json_text import json_text

        return json_text(report, tolerance)
    return write_sheets(report.sheets(view, tolerance), format, style or Style())


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
