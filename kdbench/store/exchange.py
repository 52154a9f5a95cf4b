"""Records on their way between results folders: how one is checked, copied and put in its place; exported teachers."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kdbench.errors import BadInput, BadRecord
from kdbench.files import quarantine, remove_folder
from kdbench.store.lock import Taken
from kdbench.store.reading import LARGEST_METRICS
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.measurements import measurement_from
from kdbench.suite.specs import RunSpec, Stage, digest, stage_from, teaching_run, trained_stages


def import_teachers(folder: Path, store: Store) -> list[Stage]:
    """Copy the records of an exported teacher after checking them. Raises BadInput for incomplete ones."""
    entries = sorted(entry for entry in folder.iterdir() if not (entry.name.startswith(".") or entry.is_symlink()))
    records = [Record(entry) for entry in entries if (entry / "spec.json").is_file()]
    try:
        for record in records:
            check_plain(record)
            record.check()
        stages = [stage_from(record.spec()) for record in records]
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
            place(record, target)
        except Taken:
            raise BadInput(f"teacher {record.id} is being made by another process: try again later") from None
        except BadRecord as error:
            raise BadInput(str(error)) from None
        except OSError as error:
            raise BadInput(f"{target.folder}: cannot be written: {error.strerror or error}") from None
    return stages


def export_teacher(record: Record, folder: Path, store: Store) -> list[Stage]:
    """Copy a teacher's record, and those of the stages that it was made from, to a folder that does not exist yet.

    Raises BadInput for damaged ones, for one that is made on a run's student, or where the folder cannot be written; then it
    is not there.
    """
    if folder.exists():
        raise BadInput(f"{folder}: is there already. Name a folder that does not exist yet.")
    try:
        record.check()
        last = stage_from(record.spec())
        if run := teaching_run(last):
            raise BadInput(
                f"teacher {record.id} is made on the student of run {run.id}, which an export does not hold. Copy the whole "
                f"folder {store.root} instead."
            )
        stages = trained_stages(last)
        for stage in stages:
            store.check_teacher(stage)
    except BadRecord as error:
        raise BadInput(f"{error}. Run what needs it again, and it is made again.") from None
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for stage in stages:
            source = store.record_of(stage)
            copy_record(source, temporary / source.id)
        temporary.rename(folder)
    except BadRecord as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return stages


def place(record: Record, target: Record) -> None:
    """Copy a finished or diverged record to its place, under its lock, unless one that has ended is there.

    A damaged one is quarantined; an unfinished one gives way when the copy is whole. Raises Taken where another process
    is at it, BadRecord for a damaged record, OSError.
    """
    with target.lock().acquire(timeout=0):
        if target.done() or target.diverged():
            return
        if target.has_result_file():
            quarantine(target.folder)
        copy_record(record, target.folder)


def check_copyable(record: Record) -> None:
    """Raise BadRecord unless the files of a record that has ended are plain ones, of a size that they can have, and whole."""
    check_plain(record)
    if not record.diverged():
        record.check(quick=not record.keeps_weights())
    elif digest(record.spec()) != record.id:
        raise BadRecord(f"{record.folder / 'spec.json'}: is not what was stored")


def check_plain(record: Record) -> None:
    """Raise BadRecord unless a record's files are plain ones, of a size that they can have."""
    for path in stored_files(record):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BadRecord(f"{path}: is a link or a device, not a plain file")
        if path.suffix != ".safetensors" and status.st_size > LARGEST_METRICS:
            raise BadRecord(f"{path}: has {status.st_size:,} bytes, more than any record")


def copy_record(record: Record, target: Path) -> None:
    """Copy a record that has ended, atomically, in the place of an unfinished one. Nobody else may copy to there meanwhile.

    Raises OSError, and BadRecord if the copy differs.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{record.id}.copy.tmp" / record.id
    shutil.rmtree(temporary.parent, ignore_errors=True)  # what a killed process left
    try:
        temporary.mkdir(parents=True)
        for path in stored_files(record):
            with path.open("rb") as file, (temporary / path.name).open("xb") as copy:
                shutil.copyfileobj(file, copy)
                copy.flush()
                os.fsync(copy.fileno())
        check_copyable(Record(temporary))
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            remove_folder(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


STORED = (
    "spec.json",
    "metrics.jsonl",
    "weights.safetensors",
    "teacher_head.safetensors",
    "metadata.json",
    "failure.json",
    "result.json",
)
"""The files that travel with a record that has ended."""


def stored_files(record: Record) -> Iterator[Path]:
    """Those of the files ``STORED`` that are there, whatever they are."""
    return (path for name in STORED if os.path.lexists(path := record.folder / name))


def basis(record: Record, kind: str) -> tuple[Stage, ...]:
    """The networks that a record of a kind (``runs`` …) was made on. Raises ValidationError for a spec of another version."""
    if kind == "teachers":
        parent = stage_from(record.spec()).parent
        return (parent,) if parent else ()
    of = measurement_from if kind == "measurements" else RunSpec.model_validate
    return of(record.spec()).dependencies
