"""The results directory. The file system is the state: no database, no index."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kdbench.catalogue.plugins import Source, SourceFile
from kdbench.errors import BadInput, BadRecord, KdbenchError, UnreadableRecord
from kdbench.files import make_folder, quarantine, write_bytes
from kdbench.store.lease import LEASE_SECONDS
from kdbench.store.liveness import Process, process_state
from kdbench.store.lock import Lock, Taken, prepare_locks, why_leases
from kdbench.store.record import Record
from kdbench.store.result import Result
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import Adapter, NewLayers, Stage, stage_label


KINDS = ("teachers", "runs", "measurements")

OUTDATED_FILE = "about.json"
"""The metadata file of kdbench 0.1, whose ids and files differ from the current ones."""


class Store:
    """``runs/ID``, ``teachers/ID`` and ``measurements/ID`` below one folder, which need not exist to be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = str(root)
        self._locks: dict[str, Lock] = {}

    def run(self, id: str) -> Record:
        """The record of a run, existing or not."""
        return Record(f"{self._path}/runs/{id}", self._locks)

    def teacher(self, id: str) -> Record:
        """The record of a teacher, existing or not."""
        return Record(f"{self._path}/teachers/{id}", self._locks)

    def measurement(self, id: str) -> Record:
        """The record of a measurement, existing or not."""
        return Record(f"{self._path}/measurements/{id}", self._locks)

    def outputs(self, name: str) -> Path:
        """A folder of a teacher's cached outputs, existing or not."""
        return self.root / "outputs" / name

    def outputs_lock(self, name: str, crop: int) -> Lock:
        """The lock of who computes the outputs for a crop."""
        return Lock(self.root / "locks" / f"outputs-{name}-{crop:04d}.lock")

    def measured(self, spec: ProbeSpec | SimilaritySpec) -> Result | None:
        """The stored measurement; None if there is none, or the networks' weights have changed since."""
        try:
            result = self.measurement(spec.id).result()
            hashes = self.hashes(spec.dependencies)
        except BadRecord:
            return None
        return result if result and hashes in (None, result.parent_sha256) else None

    def hashes(self, networks: Iterable[Stage]) -> str | None:
        """The joined hashes of networks' weights; None if one is missing. Raises BadRecord for damaged records."""
        results = [self.record_of(network).result() for network in networks]
        return "+".join(result.weights_sha256 for result in results if result) if all(results) else None

    def record_of(self, teacher: Stage) -> Record:
        """The record of a teacher, which is that of the run whose student it is, if it is one."""
        return self.run(teacher.source_run.id) if teacher.source_run else self.teacher(teacher.id)

    def outdated(self) -> str:
        """A sentence on the finished records of kdbench 0.1, which are not used; "" if there are none."""
        count = sum(_is_outdated(entry) for kind in KINDS for entry in self._entries(kind))
        if not count:
            return ""
        records, are = ("records were", "are") if count > 1 else ("record was", "is")
        advice = "Report them with that version, or run their suites again"
        return f"{self.root}: {count} {records} written by kdbench 0.1 and {are} not used. {advice}"

    def records(self, kind: str) -> Iterator[Record]:
        """All records of a kind (``runs``, ``teachers`` …), by id; neither quarantined ones nor those of kdbench 0.1."""
        entries = (entry for entry in self._entries(kind) if "." not in entry.name)
        yield from (Record(entry.path, self._locks) for entry in entries if not _is_outdated(entry))

    def find(self, kind: str, prefix: str) -> Record | None:
        """The record whose id begins so, with four digits or more; None if there is none. Raises BadInput for several."""
        matches = [record for record in self.records(kind) if len(prefix) >= 4 and record.id.startswith(prefix)]
        if len(matches) > 1:
            ids = ", ".join(record.id for record in matches[:10])
            raise BadInput(f"'{prefix}' begins the ids of several {kind} in {self.root}: {ids}")
        return matches[0] if matches else None

    def quarantined(self, kind: str) -> Iterator[Path]:
        """The quarantined folders of a kind, by name."""
        yield from (Path(entry.path) for entry in self._entries(kind) if ".damaged-" in entry.name)

    def _entries(self, kind: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(f"{self._path}/{kind}") as entries:
                return sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise KdbenchError(f"{self.root / kind}: cannot be read: {error.strerror or error}") from None

    def unfinished(self, teacher: Stage) -> bool:
        """Whether a teacher was started or quarantined, and is neither finished nor diverged.

        One that was never here, or was removed with the copies quarantined, is not.
        """
        record = self.teacher(teacher.id)
        if record.done() or record.diverged():
            return False
        return record.folder.is_dir() or any(record.folder.parent.glob(f"{record.id}.damaged-*"))

    def check_teacher(self, teacher: Stage) -> None:
        """Raise BadRecord unless all files are what was stored, and a parent has the weights of then (`check_origin`)."""
        self.record_of(teacher).check()
        self.check_origin(teacher)

    def check_origin(self, teacher: Stage) -> None:
        """Raise BadRecord if the parent of new layers or of an adapter has other weights now."""
        if not isinstance(teacher, NewLayers | Adapter):
            return
        record = self.record_of(teacher)
        result, below = record.result(), self.record_of(teacher.parent).result()
        if below is None:
            raise BadRecord(f"{record.folder}: what it was made on ({stage_label(teacher.parent)}) is not there")
        if result and result.parent_sha256 != below.weights_sha256:
            raise BadRecord(
                f"{record.folder}: was made on other weights of {stage_label(teacher.parent)} than are there now"
            )

    def quarantine_damaged_teachers(self, teachers: Iterable[Stage]) -> list[str]:
        """Check finished teachers, the content of all files; for the rest as ``quarantine_damaged``."""
        return self._quarantine_damaged(
            (self.record_of(teacher), "teacher", partial(self.check_teacher, teacher)) for teacher in teachers
        )

    def quarantine_damaged(self, records: Iterable[Record]) -> list[str]:
        """Check finished runs and measurements as far as that is quick: not the content of their weights.

        Those that are not what was stored are quarantined, unless in use elsewhere: one message for each. What a killed
        process left beside a result is removed. Raises KdbenchError where that cannot be done.
        """
        return self._quarantine_damaged(
            (record, record.folder.parent.name.removesuffix("s"), partial(record.check, quick=True))
            for record in records
        )

    def _quarantine_damaged(self, checks: Iterable[tuple[Record, str, Callable[[], object]]]) -> list[str]:
        messages = []
        for record, kind, check in checks:
            try:
                if record.has_result_file():
                    check()
                    self._cleanup(record)
            except BadRecord as error:
                messages.append(self._quarantine(record, check, str(error), kind))
        return [message for message in messages if message]

    def _cleanup(self, record: Record) -> None:
        if record.has_checkpoint():
            with contextlib.suppress(Taken, OSError, KdbenchError), record.lock().acquire(timeout=0):
                record.cleanup()

    def _quarantine(self, record: Record, check: Callable[[], object], reason: str, kind: str) -> str:
        """Quarantine a record, unless another process holds or has repaired it; returns a message, or ""."""
        try:
            with contextlib.suppress(Taken), record.lock().acquire(timeout=0):
                try:
                    check()
                except UnreadableRecord as error:
                    raise KdbenchError(f"{error}. Make it readable, or choose another folder with --results.") from None
                except BadRecord:
                    return f"{reason}; the {kind} is quarantined ({quarantine(record.folder).name}) and redone"
        except OSError as error:
            raise KdbenchError(
                f"{reason}; it cannot be quarantined: {error.strerror or error}. Repair that, or choose another folder with "
                "--results."
            ) from None
        return ""

    def remove_empty_logs(self) -> None:
        """Remove the empty logs of workers whose parent process on this machine was killed."""
        for log in (self.root / "logs").glob("*.log"):
            with contextlib.suppress(OSError):
                if (parent := parent_here(log)) and log.stat().st_size == 0 and process_state(parent) == "gone":
                    log.unlink()

    def source_folder(self, sha256: str) -> Path:
        """The folder of a plug-in's archived source, by its hash."""
        return self.root / "sources" / sha256

    def keep_source(self, source: Source | None) -> None:
        """Archive the source of a plug-in with the results."""
        if source:
            folder = self.source_folder(source.sha256)
            with exclusive(folder):
                write_modules(source.files.values(), folder)

    def check_writable(self) -> list[str]:
        """Raise BadInput unless results can be written; returns ``leases`` when the folder was just found to need them."""
        folder = self.root
        try:
            known = self.leases()
            for folder in (self.root, self.root / "runs", self.root / "teachers", self.root / "locks"):
                make_folder(folder)
                with tempfile.TemporaryFile(dir=folder):  # without a name, nothing is left however the process ends
                    pass
            prepare_locks(self.root / "locks")
        except KdbenchError as error:
            raise BadInput(f"{error}. Choose another folder with --results.") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadInput(
                f"cannot write results to {folder}: {reason}. Choose another folder with --results."
            ) from None
        return [] if known else self.leases()

    def leases(self) -> list[str]:
        """One sentence on why leases take the place of locks in this folder; empty where locks are known to hold."""
        reason = why_leases(self.root / "locks")
        if not reason:
            return []
        return [
            f"{self.root}: {reason}. Leases take the place of locks: what a dead machine was at is free after "
            f"{LEASE_SECONDS:.0f} s"
        ]


def _is_outdated(entry: os.DirEntry[str]) -> bool:
    return os.path.lexists(f"{entry.path}/{OUTDATED_FILE}")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder of archived files, and remove temporary files that killed processes have left in it."""
    locks = folder.parent.parent / "locks"
    make_folder(locks)
    with Lock(locks / f"{folder.parent.name}-{folder.name}.lock").acquire():
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def write_modules(files: Iterable[SourceFile], folder: Path) -> None:
    """Write modules into a folder from which they can be imported."""
    for file in files:
        path = folder / file.name
        if not path.is_file() or path.read_bytes() != file.content:
            write_bytes(path, file.content)


def log_name(slot: str, parent: Process | None = None) -> str:
    """The name of the log of a worker; ``parent``: the process that started it, or this one."""
    parent = parent or Process.current()
    return f"worker-{slot.replace(':', '-')}-{parent.machine}-{parent.pid}.log"


def parent_here(log: Path) -> int | None:
    """The number of the process that started the worker of a log, if that was on this machine."""
    found = re.fullmatch(rf"worker-.*-{re.escape(Process.current().machine)}-(\d{{1,18}})\.log", log.name)
    return int(found[1]) if found else None
