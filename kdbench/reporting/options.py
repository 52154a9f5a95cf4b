"""The options of a report. The command line reads them at every start, so this module imports little."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


TOLERANCE = 0.5
"""Points by which a mean may differ from a published number without deviation and still agree. SemCKD's published
deviations have a median of 0.19; one published trial and the mean of three then differ by less than
2 · 0.19 · √(1 + 1/3) = 0.44 in 19 cases of 20, if both are trained alike."""


class View(StrEnum):
    """The content of a table's cells."""

    measured = "measured"
    published = "published"
    both = "both"
    difference = "difference"
    verdict = "verdict"


class Format(StrEnum):
    """The formats of a report."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


class Bold(StrEnum):
    """The bold cells of a grid table: the best, or every method not significantly different from it."""

    best = "best"
    separable = "separable"


@dataclass(frozen=True)
class PagePicture:
    """A picture for a page.

    pair:    the pair of networks that it shows; "" where it shows all of them
    summary: what it shows
    methods: whose marks it has
    caption: what the marks are, over how many trials and how trained
    width:   in CSS pixels
    numbers: its data as lines of a table, the names of columns first; () where there are too many
    """

    kind: str
    pair: str
    summary: str
    methods: tuple[str, ...]
    caption: str
    png: bytes
    width: int
    numbers: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class ReportOptions:
    """How a report is shown.

    ``tolerance`` is in percentage points. ``statistics`` adds the tables that compare all methods with the ``baseline``
    (default: kd, else ce); a page always has them. ``width`` and ``colour`` are a terminal's, ``standalone`` makes LaTeX a
    whole document, ``commands`` are shown on a page as those that lead to it, and ``pictures`` are shown there.
    """

    view: View = View.both
    tolerance: float = TOLERANCE
    bold: Bold = Bold.best
    statistics: bool = False
    baseline: str | None = None
    width: int = 160
    colour: bool = False
    standalone: bool = False
    commands: str = ""
    pictures: tuple[PagePicture, ...] = ()
