"""`kdbench data`: status, download, prepare and samples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kdbench.catalogue.datasets import dataset, datasets
from kdbench.catalogue.text import command
from kdbench.cli.completion import complete_datasets
from kdbench.cli.options import HELP_OPTIONS, Data, Json, Output, Results, print_text
from kdbench.cli.progress import download_progress
from kdbench.cli.tables import table
from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.execution.child import list_samples
from kdbench.store.store import Store
from kdbench.suite.compatibility import subset_errors
from kdbench.suite.schema import DatasetEntry, problems_of
from kdbench.suite.specs import RunSpec, Scenario
from kdbench.suite.yaml_reader import Document


if TYPE_CHECKING:
    from pydantic import BaseModel

    from kdbench.catalogue.datasets import Dataset
    from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario


data = typer.Typer(
    help="The data sets: status, download, prepare, samples.",
    no_args_is_help=True,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]…", autocompletion=complete_datasets, help="Data sets: kdbench list datasets."),
]


@data.command("status")
def status(
    names: Names = None,
    root: Data = Path("data"),
    verify: Annotated[bool, typer.Option("--verify", help="Compare the files' sums and count images.")] = False,
    json_output: Json = False,
) -> None:
    """Show which data sets are ready, and what the others lack. Exit code 1 if --verify finds damage."""
    from kdbench.datafiles.fetch import status as look

    found = [look(facts, root, verify=verify) for facts in _chosen(names)]
    if json_output:
        typer.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
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
        typer.echo(table(lines))
    if any(each.state == "damaged" for each in found):
        raise typer.Exit(1)


@data.command("download")
def download(names: Names = None, root: Data = Path("data")) -> None:
    """Fetch data sets from their authors' servers. Safe to interrupt: the same command resumes a partial file."""
    from kdbench.datafiles.fetch import fetch

    if not names:
        known = ", ".join(each.name for each in datasets().values() if each.archives)
        raise BadInput(f"kdbench data download NAME…: name the data sets to fetch, of {known}")
    chosen = _chosen(names)
    with download_progress() as listener:
        for facts in chosen:
            new = fetch(facts, root, listener)
            listener.note(f"{facts.name}: " + (_origin(facts) if not new else f"ready in {root}"))


@data.command("prepare")
def prepare(names: Names = None, root: Data = Path("data")) -> None:
    """Decode TinyImageNet, and check the files and counts of data sets; without names, of all that are present."""
    from kdbench.datafiles.readers import prepare as make_ready

    problems: list[KdbenchError] = []
    with download_progress() as listener:
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

    if not names:
        return list(datasets().values())
    return list({facts.name: facts for facts in map(dataset, names)}.values())


def _origin(facts: Dataset) -> str:
    return "is there already" if facts.files else "needs no download: it comes with scikit-learn"


Request = tuple["DatasetSpec", "Scenario", int]


@data.command("samples")
def samples(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATASET]", autocompletion=complete_datasets, help="A data set: kdbench list datasets."
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Only so many classes.")] = None,
    train_per_class: Annotated[int | None, typer.Option(help="Only so many training images of each class.")] = None,
    test_per_class: Annotated[
        int | None, typer.Option(help="As the suite has it: part of what seeds the draws.")
    ] = None,
    val_split: Annotated[float | None, typer.Option(help="The share of the training set that is held out.")] = None,
    size: Annotated[int | None, typer.Option(help="As the suite has it: part of what seeds the draws.")] = None,
    fraction: Annotated[float | None, typer.Option(help="The share of each class that is kept. Default: 1.")] = None,
    label_noise: Annotated[float | None, typer.Option(help="The share of each class with wrong labels.")] = None,
    noise: Annotated[str | None, typer.Option(help="How labels are drawn: other, all or classes.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="The trial, counted from 0.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Instead: the samples of this run.")] = None,
    output: Output = None,
    results: Results = Path("results"),
    data: Data = Path("data"),
) -> None:
    """List the training images of a scenario as CSV: index in the official training set, true label, training label."""

    part: dict[str, Any] = {"classes": classes, "train_per_class": train_per_class, "test_per_class": test_per_class}
    part |= {"val_split": val_split, "size": size}
    changes = {"fraction": fraction, "label_noise": label_noise, "noise": noise}
    expected = None
    if run is not None:
        if name or trial is not None or any(value is not None for value in (part | changes).values()):
            raise BadInput("--run ID says it all: leave the data set and the options of the scenario out")
        spec, expected = _run(results, run)
        request: Request = (spec.dataset, spec.scenario, spec.trial)
    elif name is None:
        raise BadInput("name a data set (kdbench list datasets), or a run with --run ID")
    else:
        request = (_dataset(name, part), _scenario(changes), trial or 0)
    text = list_samples(*request, data)
    if expected and expected not in text:
        raise KdbenchError(f"run {run} learned from another list (sha256 {expected}) than {data} gives now")
    lines = sum(line[:1].isdigit() for line in text.splitlines())
    print_text(text, output, f"{output} holds {lines:,} samples.")


def _dataset(name: str, part: dict[str, Any]) -> DatasetSpec:

    given = {key: value for key, value in part.items() if value is not None}
    entry = _validated(DatasetEntry, {"name": name, **given})
    if problems := subset_errors(entry):
        raise BadInput("\n".join(f"{_option(key)}: {message}" for key, message in problems))
    spec: DatasetSpec = entry.spec
    return spec


def _scenario(changes: dict[str, Any]) -> Scenario:

    found: Scenario = _validated(Scenario, {key: value for key, value in changes.items() if value is not None})
    return found


def _validated(schema: type[BaseModel], values: dict[str, Any]) -> Any:
    """A part of a suite, given by options. Raises BadInput with all that is wrong."""

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        found = problems_of(error, Document("", values, {(key,): 0 for key in values}), (), {})
        lines = [f"{_option(each.path)}: {each.message}" if each.path else each.message for each in found]
        raise BadInput("\n".join(lines)) from None


def _option(key: str) -> str:
    return "DATASET" if key == "name" else f"--{key.replace('_', '-')}"


def _run(results: Path, id: str) -> tuple[RunSpec, str | None]:
    """The spec of a run and the hash of its samples, if recorded. Raises BadInput for an unknown or damaged run."""

    record = Store(results).find("runs", id)
    if record is None:
        raise BadInput(f"no run's id in {results} begins with '{id}' (four digits or more)")
    try:
        result = record.result()
        return RunSpec.model_validate(record.spec()), result.samples_sha256 if result else None
    except (BadRecord, ValidationError):
        more = command("show", record.id, results=results)
        raise BadInput(f"run {record.id} in {results} is damaged: {more} says more") from None
