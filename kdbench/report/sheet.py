"""A table as lines of text: what lies between the numbers and the formats.

A format reads nothing else. It escapes every text itself, and calls ``plain`` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from kdbench.catalogue.text import CONTROL


class Mark(StrEnum):
    """How a number stands out: the papers print the best bold and the second best underlined.

    ``significant`` is a difference of either sign that a test finds.
    """

    none = ""
    best = "best"
    second = "second"
    significant = "significant"


@dataclass(frozen=True)
class Entry:
    """One cell's text; ``span`` is the number of columns that it covers.

    ``behind`` is the end of the text that the mark does not cover: the published number behind its bar.
    """

    text: str
    mark: Mark = Mark.none
    span: int = 1
    behind: str = ""

    @property
    def front(self) -> str:
        """The text that the mark covers."""
        return self.text.removesuffix(self.behind).rstrip()

    def write(self, escape: Callable[[str], str], marked: Callable[[str], str]) -> str:
        """The text as a format writes it, from how it escapes any text and how it marks one."""
        return " ".join(filter(None, (marked(escape(self.front)), escape(self.behind))))


Line = tuple[Entry, ...]
"""The entries of a line from left to right; their spans add up to the sheet's width."""


@dataclass(frozen=True)
class Band:
    """Header lines and the lines below them, in partitions with a rule between any two. A sheet may stack several."""

    header: tuple[Line, ...]
    parts: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """A table to be written. ``stub`` says whether the first column holds labels (to the left) and not numbers.

    ``id`` is ``ega-1`` for a paper's table and "" for any other; ``caption`` stands under the table: what it shows, the
    protocol, score rule, trials and versions; ``notes`` follow it, one line each.
    """

    title: str
    bands: tuple[Band, ...]
    id: str = ""
    stub: bool = True
    caption: str = ""
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[Line, ...]:
        return tuple(line for band in self.bands for part in (band.header, *band.parts) for line in part)

    @property
    def width(self) -> int:
        """The number of columns, with that of the labels."""
        return max((sum(entry.span for entry in line) for line in self.lines), default=0)


def spanning(texts: Iterable[str]) -> Line:
    """A header line in which equal neighbours are one entry."""
    entries: list[Entry] = []
    for text in texts:
        if entries and entries[-1].text == text:
            entries[-1] = Entry(text, span=entries[-1].span + 1)
        else:
            entries.append(Entry(text))
    return tuple(entries)


def plain(text: str) -> str:
    """The text on one line and without control characters, which could change what stands around it."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
