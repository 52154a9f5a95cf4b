"""kdbench report: the tables of what has been measured so far."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.options import Only, Trials, select


if TYPE_CHECKING:
    from kdbench.store.store import Store
    from kdbench.suite.suite import Suite


class Format(StrEnum):
    """How tables are written."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    json = "json"


class Compare(StrEnum):
    """What stands beside the measured numbers."""

    published = "published"
    nothing = "nothing"


def report(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE…]", help="Default: every suite with results.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option("--results", envvar="KDBENCH_RESULTS", help="Results folder; may be repeated.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How tables are written.")] = Format.terminal,
    compare: Annotated[
        Compare, typer.Option("--compare", help="What stands beside measured numbers.")
    ] = Compare.published,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead.")] = None,
    trials: Trials = None,
    only: Only = None,
) -> None:
    """Print the tables of suites, as far as they have been measured."""
    from kdbench.errors import BadInput
    from kdbench.store.files import write_text
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suites

    folders = results or [Path("results")]
    loaded = load_suites(suites, trials) if suites else _with_results(folders, trials)
    text = render(
        select(loaded, only), [Store(folder) for folder in folders], format, compare, to_file=output is not None
    )
    if output is None:
        typer.echo(text, nl=False)
    else:
        try:
            write_text(output, text)
        except OSError as error:
            raise BadInput(f"--output {output}: cannot be written: {error.strerror or error}") from None
        typer.echo(f"written to {output}", err=True)


def render(
    suites: Sequence[Suite],
    stores: Sequence[Store],
    format: Format = Format.terminal,
    compare: Compare = Compare.published,
    *,
    to_file: bool = False,
) -> str:
    """The tables of suites as text."""
    from kdbench.report import formats
    from kdbench.report.rows import collect
    from kdbench.report.tables import make_tables

    rows = collect(suites, stores)
    if format is Format.csv:
        return formats.csv_text(rows)
    tables = make_tables(rows, stores)
    if format is Format.json:
        return formats.json_text(rows, tables)
    beside = compare is Compare.published
    if format is Format.markdown:
        return formats.markdown(tables, compare=beside)
    live = sys.stdout.isatty() and not to_file
    width = shutil.get_terminal_size((120, 40)).columns if live else 160
    return formats.terminal(tables, compare=beside, width=width, colour=live)


def _with_results(folders: Sequence[Path], trials: int | None) -> list[Suite]:
    """The bundled suites of which something has been run."""
    from kdbench.errors import BadInput
    from kdbench.suite.load import bundled_suites, load_suites

    there = {entry.name for folder in folders for entry in (folder / "runs").glob("*")}
    suites = [suite for suite in load_suites(list(bundled_suites()), trials) if there & set(suite.specs)]
    if not suites:
        places = ", ".join(map(str, folders))
        raise BadInput(f"{places}: holds no run of a bundled suite. Name a suite, or run one first: kdbench run demo")
    return suites
