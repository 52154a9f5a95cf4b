"""Tables of plain text that fit the terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any


GAP = "  "
BREAKABLE = 16
"""Characters of a word that may be broken."""


def table(rows: Sequence[Mapping[str, Any]], optional: Collection[str] = ()) -> str:
    """Rows under the keys of the first, as wide as the terminal, or 80 columns without one.

    Long cells are wrapped. Where that is not enough, ``optional`` columns are left out, the first one first.
    """
    width = shutil.get_terminal_size((80, 24)).columns
    columns = {key: [key, *(str(row.get(key, "")) for row in rows)] for key in rows[0]}
    for key in optional:
        if _total(list(map(_longest_word, columns.values()))) > width:
            del columns[key]
    widths = _fitting(list(columns.values()), width)
    header, *body = zip(*columns.values(), strict=True)
    rule = GAP.join("-" * width for width in widths)
    return "\n".join([*_lines(header, widths), rule, *(line for row in body for line in _lines(row, widths))])


def _fitting(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths of columns, of which the widest are narrowed until all fit or none can be narrower."""
    widths = [max(map(len, column)) for column in columns]
    least = list(map(_longest_word, columns))
    while _total(widths) > width and (wide := [i for i, each in enumerate(widths) if each > least[i]]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _longest_word(column: Sequence[str]) -> int:
    """The least width of a column: numbers stay on one line, and very long words may be broken."""
    words = (word for text in column for word in (text.split() if re.search("[a-z]", text) else [text]))
    return min(BREAKABLE, max(map(len, words), default=0))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        [text] if len(text) <= width else wrap(text, width, break_on_hyphens=False)
        for text, width in zip(row, widths, strict=True)
    ]
    padded = (
        GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
        for parts in zip_longest(*cells, fillvalue="")
    )
    return [line.rstrip() for line in padded]
