"""The results directory. The file system is the state: there is no database and no index."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import Timeout

from kdbench.errors import BadInput, BadRecord
from kdbench.store.files import set_aside
from kdbench.store.record import Record
from kdbench.suite.specs import TeacherSpec


class Store:
    """``runs/ID`` and ``teachers/ID`` below one folder, which need not exist to be read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, id: str) -> Record:
        """The record of a run, existing or not."""
        return Record(self.root / "runs" / id)

    def teacher(self, id: str) -> Record:
        """The record of a teacher, existing or not."""
        return Record(self.root / "teachers" / id)

    def record_of(self, teacher: TeacherSpec) -> Record:
        """The record of a teacher, which is that of the run whose student it is, if it is one."""
        return self.run(teacher.made_by.id) if teacher.made_by else self.teacher(teacher.id)

    def records(self, kind: str) -> Iterator[Record]:
        """All existing records of a kind, ``runs`` or ``teachers``, by id; not those that were set aside as damaged."""
        folder = self.root / kind
        if folder.is_dir():
            yield from (Record(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.suffix)

    def set_aside_damaged_teachers(self, ids: Iterable[str], auxiliaries: Iterable[str] = ()) -> dict[str, str]:
        """Check the weights of finished teachers; set aside those that are not what was stored, unless in use elsewhere.

        auxiliaries: ids of the runs whose students are teachers, too. Returns a message for each damaged one, by id.
        """
        messages: dict[str, str] = {}
        for record in (*map(self.teacher, ids), *map(self.run, auxiliaries)):
            try:
                if (record.folder / "result.json").exists():
                    record.check_weights()
            except BadRecord as error:
                messages |= self._set_aside(record, str(error))
        return messages

    @staticmethod
    def _set_aside(record: Record, reason: str) -> dict[str, str]:
        """Set a teacher aside unless another process is at it, or has made it again since."""
        with contextlib.suppress(Timeout), record.lock().acquire(timeout=0):
            try:
                record.check_weights()
            except BadRecord:
                name = set_aside(record.folder).name
                return {record.id: f"{reason}; the teacher is set aside ({name}) and made again"}
        return {}

    def check_writable(self) -> None:
        """Raise BadInput unless results can be written."""
        try:
            for folder in (self.root, self.root / "runs", self.root / "teachers", self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
                    pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadInput(
                f"cannot write results to {self.root}: {reason}. Choose another folder with --results."
            ) from None
