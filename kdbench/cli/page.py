"""The HTML report: from what the command line says to a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.catalogue.commands import shell_line
from kdbench.report.formats import TOLERANCE, Bold, View


if TYPE_CHECKING:
    from kdbench.report.assemble import Report
    from kdbench.store.store import Store
    from kdbench.suite.suite import Suite


def page(
    report: Report,
    suites: Sequence[Suite],
    stores: Sequence[Store],
    commands: str = "",
    *,
    view: View = View.both,
    tolerance: float = TOLERANCE,
    bold: Bold = Bold.best,
    baseline: str | None = None,
) -> str:
    """A report as one HTML page, which shows the commands that lead to it."""
    from kdbench.report.analysis import analyse
    from kdbench.report.html import Choice, html

    choice = Choice(view, tolerance, bold is Bold.separable, commands)
    return html(report, analyse(report.rows, baseline), suites, stores, choice)


def page_options(
    tables: Sequence[str],
    view: View,
    bold: Bold,
    baseline: str | None,
    tolerance: float = TOLERANCE,
    *,
    published: bool,
    mix_versions: bool = False,
) -> list[str]:
    """The options of a report that are not as usual."""
    options = ["--published"] * published + _repeated("--table", tables)
    if view is not View.both and not published:
        options += ["--view", view]
    if bold is not Bold.best:
        options += ["--bold", bold]
    if tolerance != TOLERANCE:
        options += ["--tolerance", f"{tolerance:g}"]
    options += ["--mix-versions"] * mix_versions
    return options + (["--baseline", baseline] if baseline else [])


def command_lines(
    suites: Sequence[str],
    results: Sequence[Path] = (),
    trials: int | None = None,
    only: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    tiny: bool = False,
    data: Path | None = None,
) -> str:
    """What to type: train what is missing (in one results folder), then write the report again."""
    counted = ["--trials", str(trials)] if trials else []
    names = [f"./{name}" if name.startswith("-") else name for name in suites]
    chosen = [*names, *["--tiny"] * tiny, *counted, *_repeated("--only", only)]
    folders = _repeated("--results", results)
    train = [
        "kdbench",
        "run",
        *chosen,
        *(folders if len(results) == 1 else []),
        *_repeated("--data", [data] if data else []),
    ]
    write = ["kdbench", "report", *chosen, *folders, "-f", "html", *options, "-o", "report.html"]
    return "\n".join(map(shell_line, [train, write] if suites else [write]))


def _repeated(name: str, values: Sequence[object]) -> list[str]:
    return [text for value in values for text in (name, str(value))]
