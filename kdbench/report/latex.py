"""Sheets as LaTeX, in the style of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdbench.report.sheet import Band, Entry, Line, Mark, Sheet, plain


_BOLD = "\\textbf{{{}}}"
_MARKS = {Mark.none: "{}", Mark.best: _BOLD, Mark.second: "\\underline{{{}}}", Mark.significant: _BOLD}
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


def escape(text: str) -> str:
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
    return f"{escape(sheet.title)}. {escape(sheet.caption)}"


def _notes(sheet: Sheet) -> list[str]:
    return [f"\\par\\smallskip{{\\footnotesize {escape(note)}\\par}}" for note in sheet.notes]


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
    text = entry.write(escape, _MARKS[entry.mark].format)
    return f"\\multicolumn{{{entry.span}}}{{c}}{{{text}}}" if entry.span > 1 else text
