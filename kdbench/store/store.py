"""The results directory. The file system is the state: there is no database and no index."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import BadInput
from kdbench.store.record import Record


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

    def records(self, kind: str) -> Iterator[Record]:
        """All existing records of a kind, ``runs`` or ``teachers``, by id; not those that were set aside as damaged."""
        folder = self.root / kind
        if folder.is_dir():
            yield from (Record(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.suffix)

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
