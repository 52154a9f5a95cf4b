"""`kdbench data`: status, download, prepare, samples, and images of one's own: inspect and add."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from kdbench.catalogue.datasets import Dataset, dataset, datasets
from kdbench.catalogue.text import command
from kdbench.child import answer
from kdbench.cli.completion import complete_datasets
from kdbench.cli.listing import table
from kdbench.cli.options import Data, Json, Output, Results, find_record, group, path, print_text, say
from kdbench.datafiles import fetch
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.files import write_bytes
from kdbench.suite.compatibility import subset_errors
from kdbench.suite.plain_errors import problems_of
from kdbench.suite.schema import DatasetEntry, ImagesEntry
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario
from kdbench.suite.yaml_reader import Document, write_yaml


Schema = TypeVar("Schema", bound=BaseModel)

data = group("The data sets: status, download, prepare, samples; images of your own: inspect, add.")

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
    states = [fetch.status(entry, root, verify=verify) for entry in _chosen(names)]
    if json_output:
        typer.echo(json.dumps([asdict(state) for state in states], indent=1))
    else:
        lines = [
            {
                "dataset": d.name,
                "state": d.state,
                "size": f"{d.bytes / 1e6:,.1f} MB" if d.bytes else "",
                "missing": ", ".join(d.missing),
                "to do": d.todo,
            }
            for d in states
        ]
        typer.echo(table(lines))
    if any(d.state == "damaged" for d in states):
        raise typer.Exit(1)


@data.command("download")
def download(names: Names = None, root: Data = Path("data")) -> None:
    """Fetch data sets from their authors' servers. Safe to interrupt: the same command resumes a partial file."""
    from kdbench.cli.progress import download_progress

    if not names:
        known = ", ".join(entry.name for entry in datasets().values() if entry.archives)
        raise BadInput(f"kdbench data download NAME…: name the data sets to fetch, of {known}")
    chosen = _chosen(names)
    with download_progress() as listener:
        for entry in chosen:
            there = "is there already" if entry.files else "needs no download: it comes with scikit-learn"
            new = fetch.fetch(entry, root, listener)
            listener.note(f"{entry.name}: " + (f"ready in {root}" if new else there))


@data.command("prepare")
def prepare(names: Names = None, root: Data = Path("data")) -> None:
    """Decode TinyImageNet, and check the files and counts of data sets; without names, of all that are present."""
    from kdbench.cli.progress import download_progress
    from kdbench.datafiles.readers import prepare as make_ready

    problems: list[KdbenchError] = []
    with download_progress() as listener:
        for entry in _chosen(names):
            if not names and entry.missing(root):
                continue
            try:
                train, test = make_ready(entry, root, listener)
                typer.echo(f"{entry.name}: {train:,} training and {test:,} test images of {entry.classes} classes")
            except KdbenchError as error:
                problems.append(error)
    if problems:
        kind = BadInput if all(isinstance(problem, BadInput) for problem in problems) else KdbenchError
        raise kind("\n".join(map(str, problems)))


def _chosen(names: list[str] | None) -> list[Dataset]:
    """The data sets of these names, each once; all without names. Raises BadInput for an unknown one."""
    if not names:
        return list(datasets().values())
    return list({entry.name: entry for entry in map(dataset, names)}.values())


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
        known, scenario, trial = spec.dataset, spec.scenario, spec.trial
    elif name is None:
        raise BadInput("name a data set (kdbench list datasets), or a run with --run ID")
    else:
        known, scenario = _dataset(name, part), _validated(Scenario, changes)
    text = list_samples(known, scenario, trial or 0, data)
    if expected and expected not in text:
        raise KdbenchError(f"run {run} learned from another list (sha256 {expected}) than {data} gives now")
    lines = sum(line[:1].isdigit() for line in text.splitlines())
    print_text(text, output, f"{output} holds {lines:,} samples.")


Place = Annotated[
    Path, typer.Argument(parser=path, metavar="PATH", help="A folder of classes, a CSV of files, or a NumPy file.")
]
Size = Annotated[int | None, typer.Option(min=8, max=1024, help="The side of the images in pixels.")]
TestSplit = Annotated[
    float | None, typer.Option(help="The share of each class held out for tests, where there is no test part.")
]
Stream = Annotated[bool, typer.Option("--stream", help="Let the images stay files, decoded anew in each epoch.")]
Skip = Annotated[bool, typer.Option("--skip-unreadable", help="Leave files that cannot be decoded out.")]


@data.command("inspect")
def inspect(
    place: Place,
    size: Size = None,
    test_split: TestSplit = None,
    skip: Skip = False,
    stream: Stream = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", parser=path, metavar="PNG", help="Write 24 training pictures to this file."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Read images of your own as a suite would: counts, size, mean and sd, class balance, and a sheet of 24 pictures."""
    import numpy as np

    from kdbench.datafiles.own_images import contact_sheet, read

    found = read(_source(place, size, test_split, skip, stream))
    if sheet:
        content = io.BytesIO()
        contact_sheet(found).save(content, "PNG")
        try:
            write_bytes(sheet, content.getvalue())
        except OSError as error:
            raise BadInput(f"--sheet {sheet}: cannot be written: {error.strerror or error}") from None
        say(f"24 pictures are in {sheet}")
    counts = [np.bincount(half.labels, minlength=found.facts["classes"]).tolist() for half in (found.train, found.test)]
    classes = [
        {"class": name, "train": train, "test": test}
        for name, train, test in zip(found.facts["class_names"], *counts, strict=True)
    ]
    if json_output:
        typer.echo(json.dumps({**found.facts, "per_class": classes, "skipped": found.skipped}, indent=1))
        return
    f = found.facts
    typer.echo(
        f"{f['train']:,} training and {f['test']:,} test images of {f['classes']} classes, {f['size']} × {f['size']} pixels"
        + (", decoded in each epoch" if f["streamed"] else "")
    )
    typer.echo(f"mean {f['mean']}, std {f['std']}, content {f['sha256'][:12]}")
    for text in found.skipped:
        typer.echo(f"left out: {text}")
    typer.echo(table(classes))


@data.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the suite is to call the set.")],
    place: Place,
    size: Size = None,
    test_split: TestSplit = None,
    skip: Skip = False,
    stream: Stream = False,
) -> None:
    """Read images of your own, keep them decoded in the cache, and print the lines that a suite needs for them."""
    from kdbench.datafiles.own_images import read

    source = _source(place, size, test_split, skip, stream)
    facts = read(source).facts
    entry = {source.kind: source.path, "size": size, "test_split": test_split}
    entry |= {"skip_unreadable": skip or None, "stream": stream or None}
    say(
        f"{facts['train']:,} training and {facts['test']:,} test images of {facts['classes']} classes. Lines for a suite:"
    )
    lines = {"datasets": {name: {key: value for key, value in entry.items() if value is not None}}, "dataset": name}
    typer.echo(write_yaml(lines), nl=False)


def _source(place: Path, size: int | None, test_split: float | None, skip: bool, stream: bool) -> ImageSource:
    kind = {".csv": "csv", ".npz": "npz"}.get(place.suffix.lower(), "folder")
    options = {"size": size, "test_split": test_split, "skip_unreadable": skip or None, "stream": stream or None}
    return _validated(ImagesEntry, {kind: str(place), **options}).source(Path())


def _dataset(name: str, part: dict[str, Any]) -> DatasetSpec:
    entry = _validated(DatasetEntry, {"name": name, **part})
    if problems := subset_errors(entry):
        raise BadInput("\n".join(f"{_option(key)}: {message}" for key, message in problems))
    return entry.spec


def _validated(schema: type[Schema], options: dict[str, Any]) -> Schema:
    """A part of a suite, of the options that are given. Raises BadInput with all that is wrong."""
    values = {key: value for key, value in options.items() if value is not None}
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error, Document("", values, {(key,): 0 for key in values}), (), {})
        lines = [f"{_option(p.path)}: {p.message}" if p.path else p.message for p in problems]
        raise BadInput("\n".join(lines)) from None


def _option(key: str) -> str:
    return "DATASET" if key == "name" else f"--{key.replace('_', '-')}"


def _run(results: Path, id: str) -> tuple[RunSpec, str | None]:
    """The spec of a run and the hash of its samples, if recorded. Raises BadInput for an unknown or damaged run."""
    record = find_record(results, "runs", id)
    try:
        result = record.result()
        return RunSpec.model_validate(record.spec()), result.samples_sha256 if result else None
    except (BadRecord, ValidationError):
        more = command("show", record.id, results=results)
        raise BadInput(f"run {record.id} in {results} is damaged: {more} says more") from None


def list_samples(spec: DatasetSpec, scenario: Scenario, trial: int, data: Path) -> str:
    """The list as CSV. Raises BadInput where the data set is not in ``data`` or is not what it should be."""
    entry = spec.facts
    if entry.missing(data):
        raise BadInput(entry.how_to_get(data))
    request = {"dataset": spec.canonical(), "scenario": scenario.canonical(), "trial": trial, "data": str(data)}
    return answer("from kdbench.data.stream import print_samples\nprint_samples()", request, "the list cannot be drawn")
