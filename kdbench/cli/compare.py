"""kdbench compare: two results folders, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import Only, Trials, results_folder
from kdbench.cli.output import Output, print_text
from kdbench.cli.report import FormatOption, MixVersions, load, style
from kdbench.errors import BadInput
from kdbench.report.formats import Format


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", parser=results_folder, help="A results folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", parser=results_folder, help="Another.")],
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE…]", help="Default: every suite with results.")
    ] = None,
    format: FormatOption = Format.terminal,
    mix_versions: MixVersions = False,
    output: Output = None,
    trials: Trials = None,
    only: Only = None,
) -> None:
    """Compare two results folders cell by cell: means, their difference, and what is in one of them only."""
    from kdbench.report import comparison, tidy
    from kdbench.report.formats import write_sheets

    if format is Format.html:
        raise BadInput("--format html: there is no page of a comparison. Take another format, or kdbench report")
    folders = [first, second]
    loaded, stores = load(suites, folders, trials, only)
    found = comparison.compare(loaded, *stores, mix_versions=mix_versions)
    if not found:
        names = ", ".join(suite.name for suite in loaded)
        raise BadInput(f"{first} and {second} hold no finished run of {names}")
    if format is Format.csv:
        text = tidy.compared_csv(found)
    elif format is Format.json:
        text = tidy.compared_json(found, folders)
    else:
        text = write_sheets([each.sheet for each in found], format, style(output))
    print_text(text, output)
