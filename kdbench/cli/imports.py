"""kdbench teachers import: a checkpoint, or what export has made, as a teacher."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.options import Data, Results
from kdbench.cli.work import Devices, Place, work_on


if TYPE_CHECKING:
    from kdbench.store.record import Record
    from kdbench.store.store import Store


def import_file(
    file: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors, .pth, .pt), or what export has made.")],
    network: Annotated[str | None, typer.Option("--network", help="The network whose weights it holds.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="The data set that its classes belong to.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Where the network lies in a file that holds several, such as student.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="The channels' means that it was trained with, such as 0.5,0.5,0.5.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="The same for the standard deviations.")] = None,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
) -> None:
    """Take a checkpoint as a teacher, measure its accuracy here, and say how a suite names it.

    RepDistiller's, SemCKD's, SSKD's, mdistiller's, torchvision's, open_clip's and OpenAI's layouts are read. Nothing in the
    file is ever executed. A folder that `kdbench teachers export` has made is taken in as it is.
    """
    from kdbench.catalogue.datasets import dataset as find_dataset
    from kdbench.catalogue.networks import network as find_network
    from kdbench.errors import BadInput, KdbenchError
    from kdbench.store.store import Store
    from kdbench.suite.specs import DatasetSpec, TeacherSpec, Weights
    from kdbench.suite.teachers import named_teacher

    if file.is_dir():
        _take_in(file, Store(results))
        return
    if network is None:
        raise BadInput("--network is missing: name the network whose weights the file holds (kdbench list models)")
    facts = find_network(network)
    if facts.classifier and dataset is None:
        raise BadInput(f"--dataset is missing: {facts.name} is measured on the test set of the data set that it knows")
    if not file.is_file():
        raise BadInput(f"{file}: no such file. Give the path of a checkpoint, or of a folder that export has made.")
    kind = named_teacher(facts.name, str(file.resolve()), None, Path(), key)
    weights = Weights(
        source="file",
        sha256=kind.sha256,
        classifier=facts.classifier,
        key=key,
        mean=_channels("--mean", mean),
        std=_channels("--std", std),
    )
    known = DatasetSpec(name=find_dataset(dataset).name) if dataset and facts.classifier else None
    spec = TeacherSpec(network=facts.name, dataset=known, weights=weights)
    store = Store(results)
    record = store.teacher(spec.id)
    folders = [folder for name in ("runs", "teachers", "locks", "") if not (folder := results / name).exists()]
    store.check_writable()  # said before a large file is looked into
    place = Place(results, data, devices, weights={str(kind.sha256): file})
    try:
        if failed := work_on([], [spec], place, store, wanted=[spec]):
            raise BadInput(failed[spec.id])
    except KdbenchError:
        _leave_as_it_was(record, folders)
        raise
    result = record.result()
    here = "an encoder without classes"
    if known and result and result.last:
        images = find_dataset(known.name)
        shown = f"mean {_text(weights.mean or images.mean)} and std {_text(weights.std or images.std)}"
        here = f"top-1 {result.last.top1:.2f} % here (images with {shown})"
    stated = f", {result.published_top1:.2f} % stated by the file" if result and result.published_top1 else ""
    typer.echo(f"teacher {record.id}: {spec.label}, {here}{stated}")
    own = weights.model_dump(include={"key", "mean", "std"}, exclude_none=True)
    more = "".join(f", {name}: {json.dumps(value)}" for name, value in own.items())
    typer.echo(f"In a suite:\n  teachers:\n    mine: {{network: {facts.name}, weights: 'sha256:{kind.sha256}'{more}}}")


def _leave_as_it_was(record: Record, folders: Iterable[Path]) -> None:
    """Remove what a failed import has left: its own record, and those folders that it made and nobody has filled since."""
    from filelock import Timeout

    from kdbench.errors import KdbenchError

    with contextlib.suppress(OSError, Timeout, KdbenchError):
        if record.folder.exists():
            with record.lock().acquire(timeout=0):
                if not (record.folder / "result.json").exists():
                    shutil.rmtree(record.folder)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _text(channels: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in channels)


def _channels(option: str, text: str | None) -> tuple[float, float, float] | None:
    """Three numbers, one for each channel. Raises BadInput for anything else."""
    from kdbench.errors import BadInput

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


def _take_in(folder: Path, store: Store) -> None:
    """Copy an exported teacher's records, stage by stage, after checking them. Raises BadInput where they are not whole."""
    from filelock import Timeout
    from pydantic import ValidationError

    from kdbench.errors import BadInput, BadRecord
    from kdbench.store.copies import check_copyable, copy_record
    from kdbench.store.files import set_aside
    from kdbench.store.record import Record
    from kdbench.suite.specs import TeacherSpec

    entries = sorted(entry for entry in folder.iterdir() if not (entry.name.startswith(".") or entry.is_symlink()))
    records = [Record(entry) for entry in entries if (entry / "spec.json").is_file()]
    try:
        for record in records:
            check_copyable(record)
        stages = {r.id: TeacherSpec.model_validate(r.spec()) for r in records}
    except (BadRecord, ValidationError) as error:
        raise BadInput(f"{folder}: {error}") from None
    if not stages:
        raise BadInput(
            f"{folder}: holds no teacher. Give the path of a checkpoint, or of a folder that export has made."
        )
    store.check_writable()
    for record in records:
        target = store.teacher(record.id)
        try:
            with target.lock().acquire(timeout=0):
                if not target.done():
                    if (target.folder / "result.json").exists():
                        set_aside(target.folder)
                    shutil.rmtree(target.folder, ignore_errors=True)
                    copy_record(record, target.folder)
        except Timeout:
            raise BadInput(f"teacher {record.id} is being made by another process: try again later") from None
        except BadRecord as error:
            raise BadInput(str(error)) from None
        except OSError as error:
            raise BadInput(f"{target.folder}: cannot be written: {error.strerror or error}") from None
        typer.echo(f"teacher {record.id}: {stages[record.id].label}")
