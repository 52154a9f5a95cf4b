"""The results directory. The file system is the state: there is no database and no index."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import Timeout

from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.store.files import set_aside
from kdbench.store.lock import Lock
from kdbench.store.record import Record, Result
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import TeacherSpec


class Store:
    """``runs/ID``, ``teachers/ID`` and ``measurements/ID`` below one folder, which need not exist to be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = str(root)

    def run(self, id: str) -> Record:
        """The record of a run, existing or not."""
        return Record(f"{self._path}/runs/{id}")

    def teacher(self, id: str) -> Record:
        """The record of a teacher, existing or not."""
        return Record(f"{self._path}/teachers/{id}")

    def measurement(self, id: str) -> Record:
        """The record of a measurement, existing or not."""
        return Record(f"{self._path}/measurements/{id}")

    def measured(self, spec: ProbeSpec | SimilaritySpec) -> Result | None:
        """What was measured on networks; None where nothing was, or other weights of them are there now."""
        try:
            result = self.measurement(spec.id).result()
            hashes = self.hashes(spec.needs)
        except BadRecord:
            return None
        return result if result and hashes in (None, result.before_sha256) else None

    def hashes(self, networks: Iterable[TeacherSpec]) -> str | None:
        """The hashes of networks' weights, joined; None where one of them is not there. Raises BadRecord for damaged ones."""
        results = [self.record_of(network).result() for network in networks]
        return "+".join(result.weights_sha256 for result in results if result) if all(results) else None

    def record_of(self, teacher: TeacherSpec) -> Record:
        """The record of a teacher, which is that of the run whose student it is, if it is one."""
        return self.run(teacher.made_by.id) if teacher.made_by else self.teacher(teacher.id)

    def records(self, kind: str) -> Iterator[Record]:
        """All existing records of a kind (``runs``, ``teachers`` …), by id; not those that were set aside as damaged."""
        folder = self.root / kind
        if folder.is_dir():
            yield from (Record(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.suffix)

    def check_teacher(self, teacher: TeacherSpec) -> None:
        """Raise BadRecord unless the record is whole and, for new layers and parts, what they were made on is there still."""
        record = self.record_of(teacher)
        record.check_weights()
        if not teacher.before or not (teacher.head or teacher.part):
            return
        result, below = record.result(), self.record_of(teacher.before).result()
        if below is None:
            raise BadRecord(f"{record.folder}: what it was made on ({teacher.before.label}) is not there")
        if result and result.before_sha256 != below.weights_sha256:
            raise BadRecord(f"{record.folder}: was made on other weights of {teacher.before.label} than are there now")

    def set_aside_damaged_teachers(self, teachers: Iterable[TeacherSpec]) -> dict[str, str]:
        """Check finished teachers; set aside those that are not what was stored, unless in use elsewhere.

        Returns a message for each damaged one, by the id of its record. Raises KdbenchError where one cannot be set aside.
        """
        messages: dict[str, str] = {}
        for teacher in teachers:
            record = self.record_of(teacher)
            try:
                if (record.folder / "result.json").exists():
                    self.check_teacher(teacher)
            except BadRecord as error:
                messages |= self._set_aside(teacher, str(error))
        return messages

    def _set_aside(self, teacher: TeacherSpec, reason: str) -> dict[str, str]:
        """Set a teacher aside unless another process is at it, or has made it again since."""
        record = self.record_of(teacher)
        try:
            with contextlib.suppress(Timeout), record.lock().acquire(timeout=0):
                try:
                    self.check_teacher(teacher)
                except BadRecord:
                    name = set_aside(record.folder).name
                    return {record.id: f"{reason}; the teacher is set aside ({name}) and made again"}
        except OSError as error:
            raise KdbenchError(
                f"{reason}; it cannot be set aside: {error.strerror or error}. Repair that, or choose another folder with "
                "--results."
            ) from None
        return {}

    def check_writable(self) -> list[str]:
        """Raise BadInput unless results can be written; returns what a user should know of the file system."""
        try:
            for folder in (self.root, self.root / "runs", self.root / "teachers", self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe, Lock(Path(probe.name)) as lock:
                    lacks_locks = lock.stands_in
        except KdbenchError as error:
            raise BadInput(f"{error}. Choose another folder with --results.") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadInput(
                f"cannot write results to {self.root}: {reason}. Choose another folder with --results."
            ) from None
        if not lacks_locks:
            return []
        return [
            f"{self.root} cannot be locked: its file system has no file locks. Files {self.root}/locks/*.held stand in for "
            "them; where a machine dies, remove those that it leaves. A folder with locks (--results) needs no such care."
        ]
