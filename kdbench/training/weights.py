"""Finds, checks and downloads the files of weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.datafiles.download import fetch_file
from kdbench.errors import BadInput
from kdbench.files import file_hash, quarantine
from kdbench.store.lock import Lock
from kdbench.suite.networks import info
from kdbench.suite.specs import Imported, Network


@dataclass(frozen=True)
class WeightFiles:
    """Where files of weights are: the user's by their SHA-256, the published ones in one folder.

    ``note`` is told what a download waits for.
    """

    folder: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    download: bool = False
    note: Callable[[str], None] = lambda text: None

    def find(self, spec: Imported) -> Path | None:
        """The file of a teacher's first stage, checked; None for random weights.

        Raises BadInput, with what to do, where the file is missing or another one.
        """
        if spec.weights.source == "random":
            return None
        if spec.weights.sha256 is not None:
            return self._given(spec.weights.sha256)
        return self._published(spec.network)

    def _given(self, sha256: str) -> Path:
        path = self.given.get(sha256)
        if path is None:
            raise BadInput(
                f"the weights sha256:{sha256} are not among the teachers here. Import their file first: "
                "kdbench teachers import FILE --network … --dataset …"
            )
        if not path.is_file() or file_hash(path) != sha256:
            raise BadInput(f"{path}: is not the file any more that the suite was read with")
        return path

    def _published(self, network: Network) -> Path:
        public = info(network).public
        if public is None:
            raise BadInput(f"kdbench knows no published weights of {network}")
        path = self.folder / public.file
        if self.download:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Lock(path.with_name(f".{path.name}.lock")).wait(str(path), self.note):
                if path.is_file() and not file_hash(path).startswith(public.sha256):
                    quarantine(path)
                if not path.is_file():
                    fetch_file(public.url, path)
        elif not path.is_file():
            raise BadInput(public.how_to_get(self.folder))
        sha256 = file_hash(path)
        if not sha256.startswith(public.sha256):
            raise BadInput(
                f"{path}: is not the published file (its SHA-256 is {sha256[:12]}…, expected {public.sha256[:12]}…). "
                f"Remove it, and download {public.url} again."
            )
        return path
