"""Sheets as text: spans, rules and marks in every format, and names that mean harm."""

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from kdbench.reporting import writers
from kdbench.reporting.observations import collect, comparable, run_frame, run_observations
from kdbench.reporting.options import Format, ReportOptions, View
from kdbench.reporting.paper_tables import paper_tables
from kdbench.reporting.rendered import Emphasis, RenderedTable, Section, TableCell, plain, spanning
from kdbench.reporting.report import Report, published_report
from kdbench.reporting.tables import grid_tables
from kdbench.reporting.writers import write_report, write_tables
from kdbench.suite.load import load_suites


HEADER = (TableCell(""), TableCell("both", span=2)), (TableCell("name"), TableCell("x"), TableCell("y"))
FIRST = (TableCell("a"), TableCell("1", Emphasis.best), TableCell("2"))
SECOND = (TableCell("b"), TableCell("0"), TableCell("1", Emphasis.second))
SMALL = RenderedTable(
    "a title", (Section(HEADER, ((FIRST,), (SECOND,))),), id="t-1", caption="a caption", notes=("first", "second")
)


def test_equal_neighbours_are_one_entry():
    assert spanning(["a", "a", "b", "a"]) == (TableCell("a", span=2), TableCell("b"), TableCell("a"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb\tc", "a b c"), ("\x1b[31mred", "\ufffd[31mred"), ("a\u202eb\x00\u061c", "a\ufffdb\ufffd\ufffd")],
)
def test_plain_text(text, shown):
    assert plain(text) == shown


def test_markdown():
    assert write_tables([SMALL], Format.markdown, ReportOptions()) == (
        "### a title\n"
        "\n"
        "| name   | both<br>x   | y            |\n"
        "|:-------|:------------|:-------------|\n"
        "| a      | **1**       | 2            |\n"
        "|        |             |              |\n"
        "| b      | 0           | <ins>1</ins> |\n"
        "\n"
        "a caption\n"
        "\n"
        "- first\n"
        "- second\n"
    )


def test_latex():
    text = write_tables([SMALL], Format.latex, ReportOptions())
    for line in (
        " & \\multicolumn{2}{c}{both} \\\\\n\\cmidrule(lr){2-3}\nname & x & y \\\\\n\\midrule\na & \\textbf{1} & 2 \\\\",
        "\\midrule\nb & 0 & \\underline{1} \\\\\n\\bottomrule",
        "\\caption{a title. a caption}\n\\label{tab:t-1}",
        "{\\footnotesize first\\par}",
        "\\begin{tabular}{lcc}\n\\toprule",
    ):
        assert line in text
    assert "\\documentclass" not in text
    whole = write_tables([SMALL], Format.latex, ReportOptions(standalone=True))
    assert whole.startswith("\\documentclass")
    assert whole.endswith("\\end{document}\n")


def test_terminal():
    assert write_tables([SMALL], Format.terminal, ReportOptions()).splitlines() == [
        "a title",
        "──────────────",
        "        both",
        "name    x    y",
        "──────────────",
        "a     *1*    2",
        "──────────────",
        "b       0  _1_",
        "──────────────",
        "a caption",
        "first",
        "second",
        "",
    ]


def test_a_terminal_shows_marks_as_styles():
    text = write_tables([SMALL], Format.terminal, ReportOptions(colour=True))
    assert "\x1b[1;32m1\x1b[0m" in text
    assert "\x1b[4m1\x1b[0m" in text
    assert "*" not in text


@pytest.mark.parametrize(
    ("format", "style", "shown"),
    [
        (Format.markdown, ReportOptions(), "**1 (2)** \\| 3 |"),
        (Format.latex, ReportOptions(), "\\textbf{1 (2)} \\textbar{} 3 \\\\"),
        (Format.terminal, ReportOptions(), "*1 (2)* | 3\n"),
        (Format.terminal, ReportOptions(colour=True), "\x1b[1;32m1 (2)\x1b[0m | 3\n"),
    ],
)
def test_the_number_behind_the_bar_is_not_marked(format, style, shown):
    line = (TableCell("a"), TableCell("1 (2) | 3", Emphasis.best, suffix="| 3"))
    table = RenderedTable("t", (Section(((TableCell("m"), TableCell("x")),), ((line,),)),))
    assert shown in write_tables([table], format, style)


def test_a_wide_table_goes_on_below_beside_its_labels():
    line = tuple(TableCell(text) for text in ("label", *(f"number {i}" for i in range(10))))
    table = RenderedTable("t", (Section((line,), ((line,),)),))
    lines = writers.terminal([table], width=40, colour=False).splitlines()
    assert max(map(len, lines)) <= 40
    assert sum("label" in each for each in lines) == 2 * 4
    assert [re.findall(r"number \d", each) for each in lines if "label" in each][::2] == [
        [f"number {i}" for i in range(first, min(first + 3, 10))] for first in (0, 3, 6, 9)
    ]
    assert writers.terminal([table], width=1, colour=True)


def test_wide_letters_keep_the_columns():
    lines = [(TableCell("名前"), TableCell("1")), (TableCell("ab"), TableCell("22"))]
    text = writers.terminal([RenderedTable("t", (Section((), (tuple(lines),)),))], width=80, colour=False)
    assert "名前   1\nab    22\n" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"), ("**x**", "\\*\\*x\\*\\*"), ("<b>", "\\<b>"), ("[a](http://b)", "[a]\\(http://b)"),
        ("`x`", "\\`x\\`"),
        ("_x_", "\\_x\\_"), ("cifar100_mini", "cifar100_mini"), ("# x", "\\# x"), ("- x", "\\- x"), ("-0.12", "-0.12"),
        ("1. x", "\\1. x"), ("> x", "\\> x"), ("~~x~~", "\\~\\~x\\~\\~"), ("&lt;", "\\&lt;"), ("\\", "\\\\"),
        ("crd* (lr)", "crd\\* (lr)"), ("$x$", "<span>$</span>x<span>$</span>"), ("@user", "<span>@</span>user"),
        ("#1", "<span>#</span>1"), ("a # b @ c", "a # b @ c"),
    ],
)  # fmt: skip
def test_markdown_is_escaped(text, escaped):
    assert writers.escape_markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50%_a&b#$", "50\\%\\_a\\&b\\#\\$"), ("\\input{x}", "\\textbackslash{}input\\{x\\}"), ("a--b", "a-{}-b"),
        ("名", "{[}U+540D{]}"),
        ("χ² ≥ α", "$\\chi$$^2$ $\\geq$ $\\alpha$"),
        ("ü → ±", "ü $\\rightarrow$ $\\pm$"), ("—", "---"), ("[x]", "{[}x{]}"),
        ("a~b^c", "a\\textasciitilde{}b\\textasciicircum{}c"),
    ],
)  # fmt: skip
def test_latex_is_escaped(text, escaped):
    assert writers.escape_latex(text) == escaped


HOSTILE = [
    "a|b", "[red]x[/red]", "**x**", "=1+1", 'q"uote', "a,b;c", "\\", "ü→名", "<b>", "[/]", "%s {0}", "-", "\\\\[5cm]",
    "_", "$x^2$", "#&~", "\\end{document}", "x" * 300, "\x1b[2J", "--", "[", "'`", "€…λ√²−·",
]  # fmt: skip


@pytest.fixture
def hostile(row):
    rows = [
        row(0, 50.0 + i, method=name, teacher=name, student="s", suite=name, reason=name)
        for i, name in enumerate(HOSTILE)
    ]
    rows += [row(0, method=name, reason=name) for name in HOSTILE]
    runs = run_frame(rows)
    tables = grid_tables(runs)
    return Report([], runs, grids=tables, all_grids=tables)


def test_hostile_names_in_a_terminal(hostile):
    text = write_report(hostile, Format.terminal)
    for name in HOSTILE:
        assert plain(name) in text
    assert "\x1b" not in text
    assert "\x1b[2J" not in write_report(hostile, Format.terminal, ReportOptions(width=20, colour=True))


def test_hostile_names_in_markdown(hostile):
    lines = write_report(hostile, Format.markdown).splitlines()
    assert sum(line.startswith("### ") for line in lines) == len(hostile.grids)
    for line in lines:
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) in (3, len(HOSTILE) + 2)
        assert not re.search(r"(?<!\\)(?:\\\\)*<(?!br>|/?span>)", line)


COMPILER = shutil.which("pdflatex")


@pytest.mark.skipif(COMPILER is None, reason="no pdflatex on this machine")
@pytest.mark.parametrize("content", ["published", "hostile"])
def test_latex_compiles(tmp_path, hostile, content):
    report, view = (published_report(), View.published) if content == "published" else (hostile, View.both)
    text = write_report(report, Format.latex, ReportOptions(view, standalone=True))
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    output = compile_latex(tmp_path)
    pages = int(re.search(r"\((\d+) pages", output)[1])
    assert pages >= len(report.tables(ReportOptions(view)))
    assert "too large" not in output


def compile_latex(folder):
    done = subprocess.run(
        [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def half_done():
    """Twelve pairs of networks and a dozen methods, of which every second cell is trained."""
    suites = load_suites(["semckd_cifar100"], 3)
    runs = collect(suites, [])
    done = runs.index // 3 % 2 == 1
    runs.loc[done, "top1"] = 70 + (7 * runs.index[done] % 50) / 10
    runs.loc[done, ["status", "reason"]] = ["done", ""]
    measured, tables = comparable(run_observations(runs)), grid_tables(runs)
    papers = paper_tables(suites[0].tables, measured, runs, lambda key: "")
    return Report(papers, runs, grids=tables, all_grids=tables)


@pytest.mark.skipif(COMPILER is None, reason="no pdflatex on this machine")
def test_wide_and_long_tables_fit_their_pages(tmp_path, half_done):
    text = write_report(half_done, Format.latex, ReportOptions(statistics=True, baseline="kd", standalone=True))
    assert "U+" not in text
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    output = compile_latex(tmp_path)
    assert "too large" not in output
    assert not [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", output) if float(points) > 1]


def test_latex_has_every_character_of_the_projects_own_texts():
    package = files("kdbench")
    texts = [file.read_text(encoding="utf-8") for folder in ("reporting", "suite", "catalogue")
             for file in Path(str(package / folder)).rglob("*") if file.suffix in (".yaml", ".csv", ".py")
             and file.name != "writers.py"]  # fmt: skip
    assert {"χ", "α", "²", "−"} <= set("".join(texts))
    assert [character for character in sorted(set("".join(texts))) if "U+" in writers.escape_latex(character)] == []


@pytest.mark.parametrize("format", [Format.markdown, Format.latex, Format.terminal])
def test_every_printed_number_is_in_every_format(format):
    report = published_report()
    text = write_report(report, format, ReportOptions(View.published))
    symbol = {Format.latex: "$\\pm$"}.get(format, "±")
    for table in report.papers:
        for printed in table.cells["printed"]:
            number = printed.replace("±", symbol)
            assert (number if number != "—" or format is not Format.latex else "---") in text
