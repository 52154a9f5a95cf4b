"""`kdbench teachers`: list, train, import, verify and export."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from kdbench.catalogue.datasets import dataset as find_dataset
from kdbench.catalogue.text import printable
from kdbench.cli.completion import complete_datasets, complete_networks
from kdbench.cli.listing import Kind, list_things
from kdbench.cli.options import Data, Json, Only, Results, Suites, find_record, group, load, say
from kdbench.cli.run import Devices, Download, Jobs, progress
from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.execution.runner import train_teachers
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.cohorts import auxiliaries_of
from kdbench.store.exchange import export_teacher, import_teachers
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.store.verify import label_of
from kdbench.store.verify import verify as compare
from kdbench.suite.networks import find_network, info
from kdbench.suite.specs import DatasetSpec, Imported, Weights, stage_label
from kdbench.suite.teachers import teacher_config


app = group("The teachers in a results folder: list, train, import, verify, export.")


@app.command("list")
def list_teachers(results: Results = Path("results"), json_output: Json = False) -> None:
    """List the teachers: what made them, and their accuracy."""
    list_things(Kind.teachers, results, json_output)


@app.command()
def train(
    suites: Suites,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
    jobs_per_device: Jobs = None,
    only: Only = None,
    download: Download = False,
) -> None:
    """Train the teachers of suites, and nothing else. Concurrent commands wait for the same teacher."""
    loaded = load(suites, [results], only=only)
    specs = [each for suite in loaded for spec in suite.specs.values() for each in (*auxiliaries_of(spec), spec)]
    teachers = {stage.id: stage for spec in specs for stage in spec.stages}
    given = {sha256: file for suite in loaded for sha256, file in suite.weight_files.items()}
    options = RunOptions(results, data, devices, jobs_per_device, download, weights=given)
    with progress() as on_event:
        failed = train_teachers([*teachers.values()], options, on_event)
    if failed:
        lines = [f"  {stage_label(teachers[id])} ({id}): {reason}" for id, reason in failed.items()]
        raise KdbenchError("\n".join([f"{len(failed)} failed:", *lines]))
    typer.echo(f"{len(teachers)} teachers are there.")


HeldNetwork = Annotated[
    str | None,
    typer.Option("--network", autocompletion=complete_networks, help="The network whose weights the file holds."),
]
HeldDataset = Annotated[
    str | None,
    typer.Option("--dataset", autocompletion=complete_datasets, help="The data set that its classes belong to."),
]
Key = Annotated[
    str | None, typer.Option("--key", help="Where the network lies in a file that holds several, such as student.")
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="The channels' means that it was trained with, such as 0.5,0.5,0.5.")
]
Std = Annotated[str | None, typer.Option("--std", help="The same for the standard deviations.")]


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors, .pth, .pt), or an exported folder.")],
    network: HeldNetwork = None,
    dataset: HeldDataset = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            min=0,
            help="Instead of --dataset: the number of classes of its classifier, which is left out; 0 where it has none.",
        ),
    ] = None,
    key: Key = None,
    mean: Mean = None,
    std: Std = None,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
) -> None:
    """Import a checkpoint as a teacher, measure its accuracy, and print how a suite names it.

    RepDistiller's, SemCKD's, SSKD's, mdistiller's, torchvision's, open_clip's and OpenAI's layouts are read. Nothing in the
    file is ever executed. A folder written by `kdbench teachers export` is imported as it is.
    """
    store = Store(results)
    if file.is_dir():
        for stage in import_teachers(file, store):
            typer.echo(printable(f"teacher {stage.id}: {stage_label(stage)}"))
        return
    if network is None:
        raise BadInput("--network is missing: name the network whose weights the file holds (kdbench list models)")
    named = find_network(network)
    net = info(named)
    if net.classifier and (dataset is None) == (classes is None):
        raise BadInput(
            f"--dataset is missing: {net.name} is measured on the test set of the data set that it knows. Where kdbench has "
            "none with its classes, give their number with --classes instead"
        )
    if not file.is_file():
        raise BadInput(f"{file}: no such file. Give the path of a checkpoint, or of a folder that export has made.")
    known = DatasetSpec(name=find_dataset(dataset).name) if dataset and net.classifier else None
    config = teacher_config(named, str(file.resolve()), None, Path(), key)
    if net.classifier:
        _check_classes(file, config.counts or frozenset(), known.class_count if known else classes or 0, known)
    weights = Weights(
        source="file",
        sha256=config.sha256,
        classifier=known is not None,
        key=key,
        mean=channels("--mean", mean),
        std=channels("--std", std),
    )
    spec = Imported(network=named, dataset=known, weights=weights)
    record = store.teacher(spec.id)
    folders = [folder for name in ("runs", "teachers", "locks", "") if not (folder := results / name).exists()]
    store.check_writable()  # said before a large file is looked into
    before = record.done()
    options = RunOptions(results, data, devices, weights={str(config.sha256): file})
    try:
        with progress() as on_event:
            failed = train_teachers([spec], options, on_event)
        if failed:
            raise BadInput(failed[spec.id])
    except KdbenchError:
        _leave_as_it_was(record, folders)
        raise
    result = record.result()
    if before and result and (text := result.contradiction(result.last)):  # a new one is warned of by its worker
        say(f"WARNING {stage_label(spec)}: {text}")
    here = "used without a classifier" if net.classifier else "an encoder without classes"
    if known and result and result.last:
        images = find_dataset(known.name)
        shown = f"mean {_text(weights.mean or images.mean)} and std {_text(weights.std or images.std)}"
        here = f"top-1 {result.last.top1:.2f} % here (images with {shown})"
    stated = ""
    if result and result.published_top1 is not None:
        stated += f", {result.published_top1:.2f} % stated by the file"
    if result and result.published_best is not None:
        stated += f", {result.published_best:.2f} % stated as the best of its training, perhaps of another epoch"
    typer.echo(f"teacher {record.id}: {stage_label(spec)}, {here}{stated}")
    own = weights.model_dump(include={"key", "mean", "std"}, exclude_none=True)
    own |= {"fine_tune": True} if net.classifier and not known else {}
    more = "".join(f", {name}: {json.dumps(value)}" for name, value in own.items())
    shown = net.name if net.bundled else json.dumps(net.name)
    typer.echo(f"In a suite:\n  teachers:\n    mine: {{network: {shown}, weights: 'sha256:{config.sha256}'{more}}}")


def _check_classes(file: Path, there: frozenset[int], expected: int, data: DatasetSpec | None) -> None:
    """Raise BadInput unless a file may hold a classifier for the expected number of classes; 0: for none."""
    if expected in there or (data is None and not expected):
        return
    holds = (
        f"a classifier for {', '.join(map(str, sorted(there)))} classes" if there else "no classifier for its embedding"
    )
    wanted = f"and {data.name} has {expected}" if data else f"and none for {expected}"
    raise BadInput(
        f"{file}: holds {holds}, {wanted}. Import it without its classifier, with --classes {max(there, default=0)} in place "
        "of --dataset; it can teach with fine_tune: true, or under strategy sequential or simultaneous"
    )


@app.command()
def verify(results: Results = Path("results"), json_output: Json = False) -> None:
    """Compare the files of finished teachers with their checksums. Exit code 1 if one is damaged.

    New layers that were trained together with a run's student are checked with that run.
    """
    store = Store(results)
    labels = {
        record.id: label_of(record, "teachers") for record in store.records("teachers") if record.has_result_file()
    }
    runs = dict.fromkeys(_with_new_layers(store), "a run, with the new layers that learned beside it")
    checked = compare(store, {"teachers": labels, "runs": runs, "measurements": ()})
    damaged = {each.id: f"{each.problem}. {each.next_step}" for each in reversed(checked.damaged)}
    found = [{"id": id, "teacher": label, "damaged": damaged.get(id, "")} for id, label in (labels | runs).items()]
    if json_output:
        typer.echo(json.dumps(found, indent=1))
    else:
        for entry in found:
            typer.echo(printable(f"{'BAD ' if entry['damaged'] else 'ok  '} {entry['id']}  {entry['teacher']}"))
            if entry["damaged"]:
                typer.echo(printable(f"     {entry['damaged']}"))
        typer.echo(f"{len(found)} finished teachers, {len(damaged)} damaged.")
    if damaged:
        raise typer.Exit(1)


@app.command()
def export(
    id: Annotated[str, typer.Argument(metavar="ID", help="A teacher's id, or how it begins.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    results: Results = Path("results"),
) -> None:
    """Copy a teacher, and the stages that it was made from, into a folder: weights as .safetensors, and their records."""
    record = find_record(results, "teachers", id)
    for stage in export_teacher(record, folder, Store(results)):
        typer.echo(printable(f"{folder / stage.id}: {stage_label(stage)}"))


def _leave_as_it_was(record: Record, folders: Iterable[Path]) -> None:
    """Remove the record of a failed import, and the folders that it made, if they are still empty."""
    with contextlib.suppress(OSError, Taken, KdbenchError):
        if record.folder.exists():
            with record.lock().acquire(timeout=0):
                if not (record.folder / "result.json").exists():
                    shutil.rmtree(record.folder)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _text(channels: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in channels)


def channels(option: str, text: str | None) -> tuple[float, float, float] | None:
    """Three numbers, one for each channel. Raises BadInput for anything else."""
    if text is None:
        return None
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        first = second = third = math.nan
    values = first, second, third
    if not all(math.isfinite(value) and (option == "--mean" or value > 0) for value in values):
        raise BadInput(f"{option} {text}: give three numbers for values from 0 to 1, such as 0.485,0.456,0.406")
    return values


def _with_new_layers(store: Store) -> Iterator[str]:
    """The ids of finished runs that trained their teacher's new layers together with the student."""
    for record in store.records("runs"):
        with contextlib.suppress(BadRecord):  # not finished: the next kdbench run sets it aside
            result = record.result()
            if result and result.teacher_head_sha256 and record.keeps_weights():
                yield record.id
