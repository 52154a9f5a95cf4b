"""kdbench verify: is everything in a results folder what was stored?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kdbench.catalogue.printable import one_line
from kdbench.cli.options import Json, Results
from kdbench.errors import BadInput


def verify(
    suites: Annotated[list[str] | None, typer.Argument(metavar="[SUITE…]", help="Default: all that is there.")] = None,
    results: Results = Path("results"),
    json_output: Json = False,
) -> None:
    """Compare every file of every finished record with what was stored. Exit code 1 where one is damaged."""
    from kdbench.store.store import Store
    from kdbench.store.verify import verify as compare

    if not results.is_dir():
        raise BadInput(f"{results}: no such results folder")
    found = compare(Store(results), _ids(suites) if suites else None)
    if json_output:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        for each in found.damaged:
            what = f"BAD  {each.kind} {each.id}, {each.label}: {each.problem.removesuffix('.')}. {each.next_step}"
            typer.echo(one_line(what, 2000))
        for note in found.notes:
            typer.echo(one_line(f"note {note}", 2000))
        records = len({(each.kind, each.id) for each in found.damaged})
        typer.echo(f"{found.checked} finished records, {records} damaged.")
    if found.damaged:
        raise typer.Exit(1)


def _ids(names: list[str]) -> dict[str, set[str]]:
    """The ids of all that suites need, by kind of record."""
    from kdbench.plan.plan import all_stages, auxiliaries_of
    from kdbench.suite.load import load_suites

    suites = load_suites(names)
    specs = [spec for suite in suites for spec in suite.specs.values()]
    measured = [each.spec for suite in suites for each in suite.measurements]
    runs = [each for spec in specs for each in (*auxiliaries_of(spec), spec)]
    runs += [need.made_by for spec in measured for need in spec.needs if need.made_by]
    return {
        "teachers": {stage.id for stage in all_stages(specs, measured)},
        "runs": {run.id for run in runs},
        "measurements": {spec.id for spec in measured},
    }
