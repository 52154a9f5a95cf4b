"""Sheets as GitHub's markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdbench.report.sheet import Band, Line, Mark, Sheet, plain


_MARKS = {Mark.none: "{}", Mark.best: "**{}**", Mark.second: "<ins>{}</ins>", Mark.significant: "**{}**"}


def markdown(sheets: Sequence[Sheet]) -> str:
    """One section per sheet. Markdown knows one header line and no rules: header lines are joined, blank lines part."""
    return "\n\n".join(map(_section, sheets)) + "\n"


def escape(text: str) -> str:
    """The text without anything that markdown or HTML would read as more than text."""
    text = re.sub(r"([\\|*<`~&])", r"\\\1", plain(text)).replace("](", "]\\(")
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is an underscore
    text = re.sub(r"^([#+-]+(?=\s)|>|\d+(?=[.)]\s))", r"\\\1", text)
    return re.sub(
        r"\$|@(?=\w)|#(?=\d)", r"<span>\g<0></span>", text
    )  # GitHub reads formulas, people and issues even so


def _section(sheet: Sheet) -> str:
    from tabulate import tabulate

    header, *body = [line for index, band in enumerate(sheet.bands) for line in _lines(band, sheet.width, index > 0)]
    text = tabulate(body, header, tablefmt="pipe", disable_numparse=True)
    notes = [f"- {escape(note)}" for note in sheet.notes]
    caption = [escape(sheet.caption), ""] if notes else [escape(sheet.caption)]
    return "\n".join([f"### {escape(sheet.title)}", "", text, "", *caption, *notes])


def _lines(band: Band, width: int, parted: bool) -> list[list[str]]:
    """A band's lines, the header in one, with a blank line before each partition but the first."""
    blank = [""] * width
    header = ["<br>".join(filter(None, texts)) for texts in zip(*map(_texts, band.header), strict=True)]
    lines = [blank, header] if parted else [header]
    for index, part in enumerate(band.parts):
        lines += [blank] * (index > 0) + [_texts(line) for line in part]
    return lines


def _texts(line: Line) -> list[str]:
    """One text per column; a spanning one stands in its first."""
    texts = []
    for entry in line:
        texts += [entry.write(escape, _MARKS[entry.mark].format), *[""] * (entry.span - 1)]
    return texts
