"""Sheets as LaTeX, in the style of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdbench.report.sheet import Band, Entry, Line, Mark, Sheet, plain


_MARKS = {Mark.none: "{}", Mark.best: "\\textbf{{{}}}", Mark.second: "\\underline{{{}}}"}
_SPECIAL = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedblright{}", "'": "\\textquotesingle{}",
    "[": "{[}", "]": "{]}", "`": "\\textasciigrave{}", **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": "$\\pm$", "×": "$\\times$", "·": "$\\cdot$", "→": "$\\rightarrow$", "↓": "$\\downarrow$", "↑": "$\\uparrow$",
    "–": "–", "—": "—", "…": "\\ldots{}", "λ": "$\\lambda$", "√": "$\\surd$", "²": "$^2$", "−": "$-$",
}  # fmt: skip
_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"
_PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""
_NEEDS = "% needs the packages booktabs, graphicx and textcomp\n"


def latex(sheets: Sequence[Sheet], *, standalone: bool = False) -> str:
    """Tables to be read with \\input, or a whole document with one on each page."""
    if standalone:
        return _PREAMBLE + "\\clearpage\n".join(map(_table, sheets)) + "\\end{document}\n"
    return _NEEDS + "\n".join(map(_table, sheets))


def escape(text: str) -> str:
    """The text as LaTeX prints it; a character that its usual fonts lack becomes its code point."""
    text = "".join(map(_character, plain(text)))
    return re.sub(r"-(?=-)", "-{}", text).replace("–", "--").replace("—", "---")


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    known = " " <= character <= "~" or character in _LETTERS
    return character if known else f"{{[}}U+{ord(character):04X}{{]}}"


def _table(sheet: Sheet) -> str:
    columns = ("l" if sheet.stub else "") + "c" * (sheet.width - sheet.stub)
    body = "\n\\midrule\n".join(_band(band) for band in sheet.bands)
    lines = [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{escape(sheet.title)}. {escape(sheet.caption)}}}",
        *([f"\\label{{tab:{sheet.id}}}"] if sheet.id else []),
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        body,
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\smallskip{{\\footnotesize {escape(note)}}}" for note in sheet.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _band(band: Band) -> str:
    header = [text for line in band.header for text in _header_line(line)]
    parts = ["\n".join(map(_line, part)) for part in band.parts]
    return "\n\\midrule\n".join(["\n".join(header), *parts])


def _header_line(line: Line) -> list[str]:
    """A header line, with a rule below the entries that span several columns."""
    rules, column = [], 1
    for entry in line:
        if entry.span > 1 and entry.text:
            rules.append(f"\\cmidrule(lr){{{column}-{column + entry.span - 1}}}")
        column += entry.span
    return [_line(line), *(["".join(rules)] if rules else [])]


def _line(line: Line) -> str:
    return " & ".join(map(_entry, line)) + " \\\\"


def _entry(entry: Entry) -> str:
    text = _MARKS[entry.mark].format(escape(entry.text))
    return f"\\multicolumn{{{entry.span}}}{{c}}{{{text}}}" if entry.span > 1 else text
