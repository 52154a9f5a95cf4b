"""Writes tables as Markdown, LaTeX or terminal text, and a whole report in any format."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdbench.reporting.options import Format, ReportOptions, View
from kdbench.reporting.rendered import Emphasis, RenderedTable, Row, Section, TableCell, plain


if TYPE_CHECKING:
    from rich.text import Text

    from kdbench.reporting.report import Report


def write_report(report: Report, format: Format, options: ReportOptions | None = None) -> str:
    """A report as text. CSV holds the values: the published ones under the view `published`, else the measured ones."""
    options = options or ReportOptions()
    if format is Format.html:
        from kdbench.reporting.html import html

        return html(report, options)
    if format is Format.csv:
        from kdbench.reporting.csv_json import observations_csv, published_csv

        published = options.view is View.published
        return published_csv(report.papers) if published else observations_csv(report.observations)
    statistics = report.statistics(options.baseline) if options.statistics or options.baseline else None
    if format is Format.json:
        from kdbench.reporting.csv_json import json_text

        return json_text(report, options.tolerance, statistics)
    from kdbench.reporting.statistics_tables import all_statistics_tables

    return write_tables([*report.tables(options), *all_statistics_tables(statistics or [])], format, options)


def write_tables(tables: Sequence[RenderedTable], format: Format, options: ReportOptions) -> str:
    """Tables as text, in a format for readers."""
    if format is Format.latex:
        return latex(tables, standalone=options.standalone)
    if format is Format.markdown:
        return markdown(tables)
    return terminal(tables, width=options.width, colour=options.colour)


_MARKDOWN = {
    Emphasis.none: "{}",
    Emphasis.best: "**{}**",
    Emphasis.second: "<ins>{}</ins>",
    Emphasis.significant: "**{}**",
}


def markdown(tables: Sequence[RenderedTable]) -> str:
    """One section per table. Markdown knows one header line and no rules: header lines are joined, blank lines part."""
    return "\n\n".join(map(_section, tables)) + "\n"


def escape_markdown(text: str) -> str:
    """The text without anything that markdown or HTML would read as more than text."""
    text = re.sub(r"([\\|*<`~&])", r"\\\1", plain(text)).replace("](", "]\\(")
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is an underscore
    text = re.sub(r"^([#+-]+(?=\s)|>|\d+(?=[.)]\s))", r"\\\1", text)
    return re.sub(
        r"\$|@(?=\w)|#(?=\d)", r"<span>\g<0></span>", text
    )  # GitHub reads formulas, people and issues even so


def _section(table: RenderedTable) -> str:
    from tabulate import tabulate

    header, *body = [
        line for index, section in enumerate(table.sections) for line in _lines(section, table.width, index > 0)
    ]
    text = tabulate(body, header, tablefmt="pipe", disable_numparse=True)
    notes = [f"- {escape_markdown(note)}" for note in table.notes]
    caption = [escape_markdown(table.caption), ""] if notes else [escape_markdown(table.caption)]
    return "\n".join([f"### {escape_markdown(table.title)}", "", text, "", *caption, *notes])


def _lines(section: Section, width: int, parted: bool) -> list[list[str]]:
    """A section's lines, the header in one, with a blank line before each partition but the first."""
    blank = [""] * width
    header = ["<br>".join(filter(None, texts)) for texts in zip(*map(_texts, section.header), strict=True)]
    lines = [blank, header] if parted else [header]
    for index, part in enumerate(section.parts):
        lines += [blank] * (index > 0) + [_texts(line) for line in part]
    return lines


def _texts(line: Row) -> list[str]:
    """One text per column; a spanning one is in its first."""
    texts = []
    for cell in line:
        texts += [cell.write(escape_markdown, _MARKDOWN[cell.emphasis].format), *[""] * (cell.span - 1)]
    return texts


_BOLD = "\\textbf{{{}}}"
_LATEX = {Emphasis.none: "{}", Emphasis.best: _BOLD, Emphasis.second: "\\underline{{{}}}", Emphasis.significant: _BOLD}
_GREEK = (
    "alpha", "beta", "gamma", "delta", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "upsilon", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi",
    "Sigma", "Phi", "Psi", "Omega",
)  # fmt: skip
_SPECIAL = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedblright{}", "'": "\\textquotesingle{}",
    "[": "{[}", "]": "{]}", "`": "\\textasciigrave{}", **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": "$\\pm$", "×": "$\\times$", "·": "$\\cdot$", "→": "$\\rightarrow$", "↓": "$\\downarrow$", "↑": "$\\uparrow$",
    "–": "–", "—": "—", "…": "\\ldots{}", "√": "$\\surd$", "−": "$-$", "≤": "$\\leq$", "≥": "$\\geq$", "≠": "$\\neq$",
    "≈": "$\\approx$", "‖": "$\\Vert$", "∞": "$\\infty$", "¹": "$^1$", "²": "$^2$", "³": "$^3$", "ᵀ": "$^T$", "½": "$1/2$",
    "⌊": "$\\lfloor$", "⌋": "$\\rfloor$", "’": "'", "‘": "\\textasciigrave{}", "“": "\\textquotedblleft{}",
    "”": "\\textquotedblright{}", "µ": "$\\mu$", "š": "\\v{s}",
    **dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", (f"$\\{name}$" for name in _GREEK), strict=True)),
}  # fmt: skip
_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"
_FIT = r"""\providecommand{\fittable}[1]{\sbox2{#1}%
\ifdim\wd2>\linewidth\sbox2{\resizebox{\linewidth}{!}{\usebox2}}\fi
\ifdim\dimexpr\ht2+\dp2>0.75\textheight\sbox2{\resizebox*{!}{0.75\textheight}{\usebox2}}\fi
\usebox2}
"""
_PREAMBLE = rf"""\documentclass{{article}}
\usepackage[a4paper,landscape,margin=12mm]{{geometry}}
\usepackage[utf8]{{inputenc}}
\usepackage{{textcomp}}
\usepackage{{booktabs}}
\usepackage{{graphicx}}
\usepackage{{caption}}
\setlength{{\parindent}}{{0pt}}
{_FIT}\begin{{document}}
"""
_NEEDS = f"% needs the packages booktabs, graphicx and textcomp\n{_FIT}"


def latex(tables: Sequence[RenderedTable], *, standalone: bool = False) -> str:
    """Tables to be read with \\input, or a whole document with one on each page."""
    if standalone:
        return _PREAMBLE + "\\clearpage\n".join(map(_page, tables)) + "\\end{document}\n"
    return _NEEDS + "\n".join(map(_float, tables))


def escape_latex(text: str) -> str:
    """The text as LaTeX prints it; a character that its usual fonts lack becomes its code point."""
    text = "".join(map(_character, plain(text)))
    return re.sub(r"-(?=-)", "-{}", text).replace("–", "--").replace("—", "---")


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    known = " " <= character <= "~" or character in _LETTERS
    return character if known else f"{{[}}U+{ord(character):04X}{{]}}"


def _float(table: RenderedTable) -> str:
    """A table that floats, with its notes."""
    lines = [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{_caption(table)}}}",
        *_tabular(table),
        *_notes(table),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _page(table: RenderedTable) -> str:
    """A table that starts a page. It does not float, so that notes may continue on the next."""
    lines = [
        "\\begin{center}",
        f"\\captionof{{table}}{{{_caption(table)}}}",
        *_tabular(table),
        "\\end{center}",
        *_notes(table),
    ]
    return "\n".join(lines) + "\n"


def _caption(table: RenderedTable) -> str:
    return f"{escape_latex(table.title)}. {escape_latex(table.caption)}"


def _notes(table: RenderedTable) -> list[str]:
    return [f"\\par\\smallskip{{\\footnotesize {escape_latex(note)}\\par}}" for note in table.notes]


def _tabular(table: RenderedTable) -> list[str]:
    """The table itself, scaled to the page where it is wider or higher."""
    columns = ("l" if table.row_labels else "") + "c" * (table.width - table.row_labels)
    return [
        *([f"\\label{{tab:{table.id}}}"] if table.id else []),
        "\\fittable{%",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        "\n\\midrule\n".join(_band(section) for section in table.sections),
        "\\bottomrule",
        "\\end{tabular}}",
    ]


def _band(section: Section) -> str:
    header = [text for line in section.header for text in _header_line(line)]
    parts = ["\n".join(map(_line, part)) for part in section.parts]
    return "\n\\midrule\n".join(["\n".join(header), *parts])


def _header_line(line: Row) -> list[str]:
    """A header line, with a rule below the cells that span several columns."""
    rules, column = [], 1
    for cell in line:
        if cell.span > 1 and cell.text:
            rules.append(f"\\cmidrule(lr){{{column}-{column + cell.span - 1}}}")
        column += cell.span
    return [_line(line), *(["".join(rules)] if rules else [])]


def _line(line: Row) -> str:
    return " & ".join(map(_entry, line)) + " \\\\"


def _entry(cell: TableCell) -> str:
    text = cell.write(escape_latex, _LATEX[cell.emphasis].format)
    return f"\\multicolumn{{{cell.span}}}{{c}}{{{text}}}" if cell.span > 1 else text


_STYLES = {Emphasis.none: "", Emphasis.best: "bold green", Emphasis.second: "underline", Emphasis.significant: "bold"}
_SIGNS = {Emphasis.none: "", Emphasis.best: "*", Emphasis.second: "_", Emphasis.significant: "*"}
_GAP = 2


def terminal(tables: Sequence[RenderedTable], *, width: int, colour: bool) -> str:
    """Tables for a terminal of ``width`` columns; the columns of a wider one continue below, after the same labels.

    Without ``colour`` the best is between two ``*``, the second best between two ``_``.
    """
    from rich.console import Console
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, width=max(width, 20), force_terminal=colour, highlight=False, no_color=not colour)
    for table in tables:
        console.print(Text(plain(table.title), style="bold"))
        for line in _Grid(table, colour).lines(width):
            console.print(line, soft_wrap=True)
        for text in (table.caption, *table.notes):
            console.print(Text(plain(text), style="dim"))
        console.print()
    return file.getvalue()


class _Grid:
    """A table with the width of each column."""

    def __init__(self, table: RenderedTable, colour: bool) -> None:
        self.table = table
        self.colour = colour
        self.widths = [0] * table.width
        for span in sorted({cell.span for line in table.lines for cell in line}):
            for line in table.lines:
                self._make_room(line, span)

    def lines(self, width: int) -> Iterator[Text]:
        """The lines of the table, cut into as many pieces as a terminal of ``width`` needs."""
        from rich.text import Text

        for columns in self._pieces(width):
            rule = Text("─" * self._room(columns))
            for section in self.table.sections:
                for part in (section.header, *section.parts):
                    yield rule
                    yield from (self._line(line, columns) for line in part)
            yield rule

    def _make_room(self, line: Row, span: int) -> None:
        """Make the columns wide enough for a line's cells of one span, narrower spans first."""
        first = 0
        for cell in line:
            columns = range(first, first + cell.span)
            if cell.span == span:
                self.widths[columns[-1]] += max(0, _length(self._text(cell)) - self._room(list(columns)))
            first += cell.span

    def _pieces(self, width: int) -> list[list[int]]:
        """The columns side by side, as many as fit; the labels stand before each piece."""
        labels = [0] if self.table.row_labels else []
        pieces = [list(labels)]
        for column in range(len(labels), len(self.widths)):
            if len(pieces[-1]) > len(labels) and self._room([*pieces[-1], column]) > width:
                pieces.append(list(labels))
            pieces[-1].append(column)
        return pieces

    def _room(self, columns: list[int]) -> int:
        return sum(self.widths[column] for column in columns) + _GAP * (len(columns) - 1)

    def _line(self, line: Row, columns: list[int]) -> Text:
        from rich.text import Text

        text, first = Text(), 0
        for cell in line:
            shown = [column for column in range(first, first + cell.span) if column in columns]
            if shown:
                if text:
                    text.append(" " * _GAP)
                self._append(text, cell, self._room(shown), left=self.table.row_labels and first == 0)
            first += cell.span
        text.rstrip()
        return text

    def _append(self, text: Text, cell: TableCell, room: int, *, left: bool) -> None:
        content = self._text(cell)
        free = max(0, room - _length(content))
        before = 0 if left else free // 2 if cell.span > 1 else free
        text.append(" " * before)
        start = len(text)
        text.append(content)
        if self.colour and cell.emphasis:
            text.stylize(_STYLES[cell.emphasis], start, start + len(plain(cell.front)))
        text.append(" " * (free - before))

    def _text(self, cell: TableCell) -> str:
        sign = "" if self.colour else _SIGNS[cell.emphasis]
        return cell.write(plain, f"{sign}{{}}{sign}".format)


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
