"""kdbench validate: every problem of suite files at once."""

from __future__ import annotations

import json

import typer

from kdbench.cli.options import Json, Suites
from kdbench.errors import BadSuite


def validate(suites: Suites, json_output: Json = False) -> None:
    """Check suite files: every problem at once, with file, line and the nearest right name."""
    from kdbench.suite.load import load_suites

    try:
        loaded = load_suites(suites)
    except BadSuite as error:
        if not json_output:
            raise
        typer.echo(json.dumps({"problems": [problem.__dict__ for problem in error.problems]}, indent=1))
        raise typer.Exit(error.exit_code) from None
    if json_output:
        typer.echo(json.dumps({"problems": []}))
        return
    for suite in loaded:
        typer.echo(f"{suite.file}: {len(suite.runs)} table entries, {len(suite.specs)} runs. No problem found.")
