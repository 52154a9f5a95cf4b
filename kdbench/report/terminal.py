"""Sheets for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdbench.report.sheet import Entry, Line, Mark, Sheet, plain


if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {Mark.none: "", Mark.best: "bold green", Mark.second: "underline", Mark.significant: "bold"}
_SIGNS = {Mark.none: "", Mark.best: "*", Mark.second: "_", Mark.significant: "*"}
_GAP = 2


def terminal(sheets: Sequence[Sheet], *, width: int, colour: bool) -> str:
    """Tables for a terminal of ``width`` columns; what is wider goes on below, beside the same labels.

    Without ``colour`` the best stands between two ``*``, the second best between two ``_``.
    """
    from rich.console import Console
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, width=max(width, 20), force_terminal=colour, highlight=False, no_color=not colour)
    for sheet in sheets:
        console.print(Text(plain(sheet.title), style="bold"))
        for line in _Grid(sheet, colour).lines(width):
            console.print(line, soft_wrap=True)
        for text in (sheet.caption, *sheet.notes):
            console.print(Text(plain(text), style="dim"))
        console.print()
    return file.getvalue()


class _Grid:
    """A sheet with the width of each column."""

    def __init__(self, sheet: Sheet, colour: bool) -> None:
        self.sheet = sheet
        self.colour = colour
        self.widths = [0] * sheet.width
        for span in sorted({entry.span for line in sheet.lines for entry in line}):
            for line in sheet.lines:
                self._make_room(line, span)

    def lines(self, width: int) -> Iterator[Text]:
        """The lines of the table, cut into as many pieces as a terminal of ``width`` needs."""
        from rich.text import Text

        for columns in self._pieces(width):
            rule = Text("─" * self._room(columns))
            for band in self.sheet.bands:
                for part in (band.header, *band.parts):
                    yield rule
                    yield from (self._line(line, columns) for line in part)
            yield rule

    def _make_room(self, line: Line, span: int) -> None:
        """Make the columns wide enough for a line's entries of one span, narrower spans first."""
        first = 0
        for entry in line:
            columns = range(first, first + entry.span)
            if entry.span == span:
                self.widths[columns[-1]] += max(0, _length(self._text(entry)) - self._room(list(columns)))
            first += entry.span

    def _pieces(self, width: int) -> list[list[int]]:
        """The columns side by side, as many as fit; the labels stand before each piece."""
        labels = [0] if self.sheet.stub else []
        pieces = [list(labels)]
        for column in range(len(labels), len(self.widths)):
            if len(pieces[-1]) > len(labels) and self._room([*pieces[-1], column]) > width:
                pieces.append(list(labels))
            pieces[-1].append(column)
        return pieces

    def _room(self, columns: list[int]) -> int:
        return sum(self.widths[column] for column in columns) + _GAP * (len(columns) - 1)

    def _line(self, line: Line, columns: list[int]) -> Text:
        from rich.text import Text

        text, first = Text(), 0
        for entry in line:
            shown = [column for column in range(first, first + entry.span) if column in columns]
            if shown:
                if text:
                    text.append(" " * _GAP)
                self._append(text, entry, self._room(shown), left=self.sheet.stub and first == 0)
            first += entry.span
        text.rstrip()
        return text

    def _append(self, text: Text, entry: Entry, room: int, *, left: bool) -> None:
        content = self._text(entry)
        free = max(0, room - _length(content))
        before = 0 if left else free // 2 if entry.span > 1 else free
        text.append(" " * before)
        start = len(text)
        text.append(content)
        if self.colour and entry.mark:
            text.stylize(_STYLES[entry.mark], start, start + len(plain(entry.front)))
        text.append(" " * (free - before))

    def _text(self, entry: Entry) -> str:
        sign = "" if self.colour else _SIGNS[entry.mark]
        return entry.write(plain, f"{sign}{{}}{sign}".format)


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
