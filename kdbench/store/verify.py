"""Verifies a results folder: every file of every record, and leftovers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from kdbench.errors import BadRecord, KdbenchError, UnreadableRecord
from kdbench.store.archives import damaged_suites
from kdbench.store.reading import stored_mapping
from kdbench.store.record import FILES, OTHER_FILES, Record
from kdbench.store.result import Result
from kdbench.store.store import KINDS, Store
from kdbench.suite.measurements import measurement_from
from kdbench.suite.methods import formula
from kdbench.suite.specs import RunSpec, Stage, stage_from, stage_label


@dataclass(frozen=True)
class Damage:
    """A file that is not what was stored, of which record, and what to do about it."""

    kind: str
    id: str
    label: str
    problem: str
    next_step: str


@dataclass
class Verification:
    """The number of checked records, the damaged ones, and notes."""

    checked: int = 0
    damaged: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(store: Store, wanted: Mapping[str, Collection[str]] | None = None) -> Verification:
    """Compare all records with what was stored, or the ``wanted`` ones: ids by kind. All weights are read."""
    report = Verification()
    for kind in KINDS:
        for record in store.records(kind):
            if wanted is not None and record.id not in wanted[kind]:
                continue
            report.checked += record.has_result_file()
            label = label_of(record, kind)
            try:
                result, problems = record.result(), list[KdbenchError]()
            except BadRecord as error:
                result, problems = None, [error]
            if result:
                problems += _problems(store, record, kind, result)
            for problem in problems:
                next_step = _next_step(record, kind, problem)
                report.damaged.append(Damage(kind[:-1], record.id, label, str(problem), next_step))
            report.notes += _leftovers(record)
        for folder in store.quarantined(kind):
            if wanted is None or folder.name.partition(".")[0] in wanted[kind]:
                report.notes.append(f"{folder}: {_QUARANTINED}")
    if wanted is None:
        report.notes += damaged_suites(store)
    if outdated := store.outdated():
        report.notes.append(outdated)
    return report


_QUARANTINED = "was quarantined as damaged. Remove it when it is of no interest any more"


def label_of(record: Record, kind: str) -> str:
    """One line for what a record says that it is."""
    spec = record.spec()
    try:
        if kind == "teachers":
            return stage_label(stage_from(spec))
        if kind == "measurements":
            return measurement_from(spec).label
        run = RunSpec.model_validate(spec)
    except ValidationError:
        return "(spec.json cannot be read)"
    teacher = f"{run.teacher.network} → " if run.teacher else ""
    return f"{teacher}{run.student}, {formula(run.terms)}, trial {run.trial}"


def _problems(store: Store, record: Record, kind: str, result: Result) -> Iterator[KdbenchError]:
    """Check the files of a record besides its result."""
    small = [*record.small_file_problems(result)]
    yield from small
    if record.keeps_weights():
        yield from record.weight_problems(result)
    if not small:
        yield from _origin_problems(store, record, kind, result)
    metadata = record.folder / "metadata.json"
    try:
        if os.path.lexists(metadata):  # if not, _leftovers says so
            stored_mapping(metadata)
    except BadRecord as error:
        yield error


def _origin_problems(store: Store, record: Record, kind: str, result: Result) -> Iterator[KdbenchError]:
    """Check that the weights that a record was made on have not changed; the records of unreadable ones report that."""
    try:
        if kind == "teachers":
            teacher = stage_from(record.spec())
            if not teacher.parent or _readable(store, (teacher.parent,)):
                store.check_origin(teacher)
            return
        spec = measurement_from(record.spec()) if kind == "measurements" else RunSpec.model_validate(record.spec())
        now = store.hashes(spec.dependencies) if _readable(store, spec.dependencies) else None
        if now and now != result.parent_sha256:
            how = "was measured on" if kind == "measurements" else "was taught by"
            yield BadRecord(f"{record.folder}: {how} other weights than are there now")
    except KdbenchError as error:
        yield error
    except ValidationError:
        yield BadRecord(f"{record.folder / 'spec.json'}: says nothing that this version of kdbench understands")


def _readable(store: Store, networks: Iterable[Stage]) -> bool:
    try:
        store.hashes(networks)
    except BadRecord:
        return False
    return True


def _next_step(record: Record, kind: str, error: KdbenchError) -> str:
    if isinstance(error, UnreadableRecord):
        return "Make it readable."
    if f"{record.folder / 'metadata.json'}: " in str(error):
        return "Remove this file: it describes machine and time alone, and the numbers stand."
    if kind == "teachers":
        return "The next kdbench run that uses it sets it aside and makes it again."
    return f"Remove {record.folder}, and the next kdbench run of its suite makes it again."


REMOVED_WHILE_OPEN = ".nfs"
"""How NFS names a file that was removed while a process has it open. It goes by itself."""


def _leftovers(record: Record) -> Iterator[str]:
    """Harmless files that do not belong in a record's folder."""
    try:
        names = sorted(entry.name for entry in os.scandir(record.folder))
    except OSError:
        return
    finished = record.has_result_file()
    if finished and "metadata.json" not in names:
        yield f"{record.folder}: has no metadata.json, so machine, versions and time are not known"
    for name in names:
        path = record.folder / name
        if name == "state.pt" and finished:
            yield f"{path}: is of no use beside a result; the next kdbench run removes it"
        elif name == "weights.safetensors" and not finished and not record.has_checkpoint():
            yield f"{path}: there is no result beside it; the next kdbench run that needs it makes both"
        elif name.endswith(".tmp"):
            yield f"{path}: was left by a process that was killed"
        elif ".damaged-" in name:
            yield f"{path}: {_QUARANTINED}"
        elif name not in (*FILES, *OTHER_FILES) and not name.startswith(REMOVED_WHILE_OPEN):
            yield f"{path}: is no file of kdbench's"
