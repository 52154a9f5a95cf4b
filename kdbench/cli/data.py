"""kdbench data: what is there of the data sets; fetch and prepare them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.options import Data, Json
from kdbench.errors import BadInput, KdbenchError


if TYPE_CHECKING:
    from kdbench.catalogue.datasets import Dataset


data = typer.Typer(help="What is there of the data sets; fetch and prepare them.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Data sets: kdbench list datasets.")]


@data.command("status")
def status(
    names: Names = None,
    root: Data = Path("data"),
    verify: Annotated[bool, typer.Option("--verify", help="Compare the files' sums and count images.")] = False,
    json_output: Json = False,
) -> None:
    """Say which data sets are ready, what is missing of the others, and what to do. Exit code 1 if --verify finds damage."""
    from kdbench.datafiles.status import status as look

    found = [look(facts, root, verify=verify) for facts in _chosen(names)]
    if json_output:
        typer.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        from tabulate import tabulate

        lines = [
            {
                "dataset": each.name,
                "state": each.state,
                "size": f"{each.bytes / 1e6:,.1f} MB" if each.bytes else "",
                "missing": ", ".join(each.missing),
                "to do": each.todo,
            }
            for each in found
        ]
        typer.echo(
            tabulate(
                lines, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=[None] * 3 + [40, 60]
            )
        )
    if any(each.state == "damaged" for each in found):
        raise typer.Exit(1)


@data.command("download")
def download(names: Names = None, root: Data = Path("data")) -> None:
    """Fetch data sets from their authors' servers. Safe to interrupt: the same command goes on with a half-fetched file."""
    from kdbench.catalogue.datasets import datasets
    from kdbench.cli.transfers import transfers
    from kdbench.datafiles.fetch import fetch

    if not names:
        known = ", ".join(each.name for each in datasets().values() if each.archives)
        raise BadInput(f"kdbench data download NAME…: name the data sets to fetch, of {known}")
    chosen = _chosen(names)
    with transfers() as listener:
        for facts in chosen:
            new = fetch(facts, root, listener)
            listener.note(f"{facts.name}: " + (_origin(facts) if not new else f"ready in {root}"))


@data.command("prepare")
def prepare(names: Names = None, root: Data = Path("data")) -> None:
    """Decode what is kept decoded (TinyImageNet) and check files and counts; without names, of all that is there."""
    from kdbench.cli.transfers import transfers
    from kdbench.datafiles.prepare import prepare as make_ready

    problems: list[KdbenchError] = []
    with transfers() as listener:
        for facts in _chosen(names):
            if not names and facts.missing(root):
                continue
            try:
                train, test = make_ready(facts, root, listener)
                typer.echo(f"{facts.name}: {train:,} training and {test:,} test images of {facts.classes} classes")
            except KdbenchError as error:
                problems.append(error)
    if problems:
        kind = BadInput if all(isinstance(problem, BadInput) for problem in problems) else KdbenchError
        raise kind("\n".join(map(str, problems)))


def _chosen(names: list[str] | None) -> list[Dataset]:
    """The data sets of these names, each once; all without names. Raises BadInput for an unknown one."""
    from kdbench.catalogue.datasets import dataset, datasets

    if not names:
        return list(datasets().values())
    return list({facts.name: facts for facts in map(dataset, names)}.values())


def _origin(facts: Dataset) -> str:
    return "is there already" if facts.files else "needs no download: it comes with scikit-learn"
