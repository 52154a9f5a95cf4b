"""kdbench teachers: the cache of trained and imported teachers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.printable import printable
from kdbench.cli.imports import import_file
from kdbench.cli.listing import Kind, list_things
from kdbench.cli.options import Data, Json, Only, Results, Suites, load
from kdbench.cli.work import Devices, Download, Jobs, Place, work_on


if TYPE_CHECKING:
    from kdbench.store.store import Store


app = typer.Typer(
    help="The teachers in a results folder: list, train, import, verify, export.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    """Train the teachers of suites, and nothing else. Whoever asks at the same time waits for the same teacher."""
    from kdbench.errors import KdbenchError
    from kdbench.plan.plan import auxiliaries_of
    from kdbench.store.store import Store

    loaded = load(suites, [results], only=only)
    store = Store(results)
    specs = [each for suite in loaded for spec in suite.specs.values() for each in (*auxiliaries_of(spec), spec)]
    teachers = {stage.id: stage for spec in specs for stage in spec.stages}
    given = {sha256: file for suite in loaded for sha256, file in suite.weight_files.items()}
    place = Place(results, data, devices, jobs_per_device, download, weights=given)
    failed = work_on([], teachers.values(), place, store, wanted=teachers.values())
    if failed:
        lines = [f"  {teachers[id].label} ({id}): {reason}" for id, reason in failed.items()]
        raise KdbenchError("\n".join([f"{len(failed)} failed:", *lines]))
    typer.echo(f"{len(teachers)} teachers are there.")


app.command("import")(import_file)


@app.command()
def verify(results: Results = Path("results"), json_output: Json = False) -> None:
    """Check the weights of all finished teachers against what was stored. Exit code 1 where one is damaged.

    New layers that learned beside a run's student are checked with that run.
    """
    from pydantic import ValidationError

    from kdbench.errors import KdbenchError, LockedRecord
    from kdbench.store.store import Store
    from kdbench.store.verify import label_of
    from kdbench.suite.specs import TeacherSpec

    store, found, replaced = Store(results), [], False
    for record in store.records("teachers"):
        problem = ""
        if record.ended():
            try:
                record.check_weights()
                store.check_origin(TeacherSpec.model_validate(record.spec()))
            except (KdbenchError, ValidationError) as error:
                problem = str(error)
                replaced |= not isinstance(error, LockedRecord)
            found.append({"id": record.id, "teacher": label_of(record, "teachers"), "damaged": problem})
    found += list(_learned_beside(store))
    damaged = [entry for entry in found if entry["damaged"]]
    if json_output:
        typer.echo(json.dumps(found, indent=1))
    else:
        for entry in found:
            typer.echo(printable(f"{'BAD ' if entry['damaged'] else 'ok  '} {entry['id']}  {entry['teacher']}"))
            if entry["damaged"]:
                typer.echo(printable(f"     {entry['damaged']}"))
        typer.echo(f"{len(found)} finished teachers, {len(damaged)} damaged.")
        if replaced:
            typer.echo("The next kdbench run that uses a damaged one sets it aside and makes it again.")
    if damaged:
        raise typer.Exit(1)


@app.command()
def export(
    id: Annotated[str, typer.Argument(metavar="ID", help="A teacher's id, or how it begins.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    results: Results = Path("results"),
) -> None:
    """Copy a teacher, and the stages that it was made from, into a folder: weights as .safetensors, and their records."""
    from kdbench.errors import BadInput, BadRecord
    from kdbench.store.copies import copy_record
    from kdbench.store.store import Store
    from kdbench.suite.specs import TeacherSpec

    store = Store(results)
    matches = [record for record in store.records("teachers") if len(id) >= 4 and record.id.startswith(id)]
    if len(matches) != 1:
        found = ", ".join(record.id for record in matches) or "none"
        raise BadInput(
            f"'{id}' must be the beginning of one teacher's id in {results}, four digits or more; found: {found}"
        )
    if folder.exists():
        raise BadInput(f"{folder}: is there already. Name a folder that does not exist yet.")
    try:
        matches[0].check_weights()
        teachers = TeacherSpec.model_validate(matches[0].spec()).stages
        for teacher in teachers:
            store.check_teacher(teacher)
    except BadRecord as error:
        raise BadInput(f"{error}. Run what needs it again, and it is made again.") from None
    stages = [store.record_of(teacher) for teacher in teachers]
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for record in stages:
            copy_record(record, temporary / record.id)
        temporary.rename(folder)
    except BadRecord as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for teacher, record in zip(teachers, stages, strict=True):
        typer.echo(printable(f"{folder / record.id}: {teacher.label}"))


def _learned_beside(store: Store) -> Iterator[dict[str, str]]:
    """The finished runs whose teacher's new layers learned beside the student, each with what is wrong with it."""
    from kdbench.errors import BadRecord

    for record in store.records("runs"):
        problem = ""
        try:
            result = record.result()
        except BadRecord:
            continue  # not finished: the next kdbench run sets it aside
        if result is None or result.teacher_head_sha256 is None or not record.keeps_weights():
            continue
        try:
            record.check_weights()
        except BadRecord as error:
            problem = f"{error}. Remove {record.folder}, and the next kdbench run trains it again."
        yield {"id": record.id, "teacher": "a run, with the new layers that learned beside it", "damaged": problem}
