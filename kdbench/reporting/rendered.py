"""A table as lines of text: the only input of a format, which escapes every text itself and calls ``plain`` first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from kdbench.catalogue.text import CONTROL


class Emphasis(StrEnum):
    """The emphasis of a number: the papers print the best bold and the second best underlined.

    ``significant`` is a difference of either sign that a test finds.
    """

    none = ""
    best = "best"
    second = "second"
    significant = "significant"


@dataclass(frozen=True)
class TableCell:
    """One cell's text; ``span`` is the number of columns that it covers.

    ``suffix`` is the end of the text that the emphasis does not cover: the published number after its bar.
    """

    text: str
    emphasis: Emphasis = Emphasis.none
    span: int = 1
    suffix: str = ""

    @property
    def front(self) -> str:
        """The text that the emphasis covers."""
        return self.text.removesuffix(self.suffix).rstrip()

    def write(self, escape: Callable[[str], str], marked: Callable[[str], str]) -> str:
        """The text as a format writes it, from how it escapes any text and how it marks one."""
        return " ".join(filter(None, (marked(escape(self.front)), escape(self.suffix))))


Row = tuple[TableCell, ...]
"""The cells of a line from left to right; their spans add up to the table's width."""


@dataclass(frozen=True)
class Section:
    """Header lines and the lines below them, in partitions with a rule between any two. A table may stack several."""

    header: tuple[Row, ...]
    parts: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class RenderedTable:
    """A table to be written. ``row_labels`` says whether the first column holds labels (to the left) and not numbers.

    ``id`` is ``ega-1`` for a paper's table and "" for any other; ``caption`` describes the table: its numbers,
    protocol, score rule, trials and versions; ``notes`` follow it, one line each.
    """

    title: str
    sections: tuple[Section, ...]
    id: str = ""
    row_labels: bool = True
    caption: str = ""
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[Row, ...]:
        return tuple(line for section in self.sections for part in (section.header, *section.parts) for line in part)

    @property
    def width(self) -> int:
        """The number of columns, with that of the labels."""
        return max((sum(cell.span for cell in line) for line in self.lines), default=0)


def spanning(texts: Iterable[str]) -> Row:
    """A header line in which equal neighbours are one cell."""
    cells: list[TableCell] = []
    for text in texts:
        if cells and cells[-1].text == text:
            cells[-1] = TableCell(text, span=cells[-1].span + 1)
        else:
            cells.append(TableCell(text))
    return tuple(cells)


def plain(text: str) -> str:
    """The text on one line and without control characters, which could change the text around it."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
