"""Writes tables as Markdown, LaTeX or terminal text, and a whole report in any format."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdbench.report.options import TOLERANCE, Bold, Format, Style, View
from kdbench.report.sheet import Band, Entry, Line, Mark, Sheet, plain


if TYPE_CHECKING:
    from rich.text import Text

    from kdbench.report.assemble import Analysis, Report
    from kdbench.report.sheet import Sheet


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
        from kdbench.report.assemble import mark_all_separable

        accuracies = len(report.printed) + len(report.tables)
        marked = mark_all_separable(sheets[:accuracies], report.tables, report.rows)
        sheets = [*marked, *sheets[accuracies:]]
    return write_sheets([*sheets, *(statistics.sheets() if statistics else ())], format, style)


def write_sheets(sheets: list[Sheet], format: Format, style: Style) -> str:
    """Tables as text, in a format for readers."""
    if format is Format.latex:
        return latex(sheets, standalone=style.standalone)
    if format is Format.markdown:
        return markdown(sheets)

    return terminal(sheets, width=style.width, colour=style.colour)


_MARKDOWN_MARKS = {Mark.none: "{}", Mark.best: "**{}**", Mark.second: "<ins>{}</ins>", Mark.significant: "**{}**"}


def markdown(sheets: Sequence[Sheet]) -> str:
    """One section per sheet. Markdown knows one header line and no rules: header lines are joined, blank lines part."""
    return "\n\n".join(map(_section, sheets)) + "\n"


def escape_markdown(text: str) -> str:
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
    notes = [f"- {escape_markdown(note)}" for note in sheet.notes]
    caption = [escape_markdown(sheet.caption), ""] if notes else [escape_markdown(sheet.caption)]
    return "\n".join([f"### {escape_markdown(sheet.title)}", "", text, "", *caption, *notes])


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
        texts += [entry.write(escape_markdown, _MARKDOWN_MARKS[entry.mark].format), *[""] * (entry.span - 1)]
    return texts


_BOLD = "\\textbf{{{}}}"
_LATEX_MARKS = {Mark.none: "{}", Mark.best: _BOLD, Mark.second: "\\underline{{{}}}", Mark.significant: _BOLD}
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


def latex(sheets: Sequence[Sheet], *, standalone: bool = False) -> str:
    """Tables to be read with \\input, or a whole document with one on each page."""
    if standalone:
        return _PREAMBLE + "\\clearpage\n".join(map(_page, sheets)) + "\\end{document}\n"
    return _NEEDS + "\n".join(map(_float, sheets))


def escape_latex(text: str) -> str:
    """The text as LaTeX prints it; a character that its usual fonts lack becomes its code point."""
    text = "".join(map(_character, plain(text)))
    return re.sub(r"-(?=-)", "-{}", text).replace("–", "--").replace("—", "---")


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    known = " " <= character <= "~" or character in _LETTERS
    return character if known else f"{{[}}U+{ord(character):04X}{{]}}"


def _float(sheet: Sheet) -> str:
    """A table that floats, with its notes."""
    lines = [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{_caption(sheet)}}}",
        *_tabular(sheet),
        *_notes(sheet),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _page(sheet: Sheet) -> str:
    """A table that starts a page. It does not float, so that notes may go on over the next."""
    lines = [
        "\\begin{center}",
        f"\\captionof{{table}}{{{_caption(sheet)}}}",
        *_tabular(sheet),
        "\\end{center}",
        *_notes(sheet),
    ]
    return "\n".join(lines) + "\n"


def _caption(sheet: Sheet) -> str:
    return f"{escape_latex(sheet.title)}. {escape_latex(sheet.caption)}"


def _notes(sheet: Sheet) -> list[str]:
    return [f"\\par\\smallskip{{\\footnotesize {escape_latex(note)}\\par}}" for note in sheet.notes]


def _tabular(sheet: Sheet) -> list[str]:
    """The table itself, scaled to the page where it is wider or higher."""
    columns = ("l" if sheet.stub else "") + "c" * (sheet.width - sheet.stub)
    return [
        *([f"\\label{{tab:{sheet.id}}}"] if sheet.id else []),
        "\\fittable{%",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        "\n\\midrule\n".join(_band(band) for band in sheet.bands),
        "\\bottomrule",
        "\\end{tabular}}",
    ]


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
    text = entry.write(escape_latex, _LATEX_MARKS[entry.mark].format)
    return f"\\multicolumn{{{entry.span}}}{{c}}{{{text}}}" if entry.span > 1 else text


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
