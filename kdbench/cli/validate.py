"""kdbench validate: every problem of suite files at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from kdbench.catalogue.printable import printable
from kdbench.cli.options import Json, Suites
from kdbench.errors import BadSuite, Problem


if TYPE_CHECKING:
    from kdbench.suite.suite import Suite


def validate(suites: Suites, json_output: Json = False) -> None:
    """Check suite files: every problem at once, with file, line and the nearest right name."""
    from kdbench.suite.load import load_suites

    try:
        loaded = load_suites(suites)
        _check_weights(loaded)
    except BadSuite as error:
        if not json_output:
            raise
        typer.echo(json.dumps({"problems": [problem.__dict__ for problem in error.problems]}, indent=1))
        raise typer.Exit(error.exit_code) from None
    if json_output:
        typer.echo(json.dumps({"problems": []}))
        return
    for suite in loaded:
        text = f"{suite.file}: {len(suite.runs)} table entries, {len(suite.specs)} runs. No problem found."
        typer.echo(printable(text))


def _check_weights(suites: Iterable[Suite]) -> None:
    """Raise BadSuite where a file of weights does not hold the network that a suite takes from it."""
    from kdbench.execution.weight_files import misfits

    problems = []
    for suite in suites:
        needs = [need for spec in suite.specs.values() for need in spec.needs]
        problems += [Problem(suite.file, 0, "teachers", message) for message in misfits(needs, suite.weight_files)]
    if problems:
        raise BadSuite(problems)
