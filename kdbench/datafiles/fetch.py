"""Fetches data sets, checks their files and reports their status."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.catalogue.text import command
from kdbench.datafiles.download import (
    NullReporter,
    ProgressReporter,
    checksum_mismatches,
    download,
    exclusive_lock,
    is_archive,
    unpack,
)
from kdbench.errors import BadInput
from kdbench.files import quarantine


def find_damage(facts: Dataset, root: Path) -> str:
    """Describe damage of the files by their checksums, or counts if they have none; "" for none. Nothing is written."""
    from kdbench.datafiles.folders import list_folders
    from kdbench.datafiles.readers import listed, read_npz

    try:
        if facts.streamed:
            list_folders(facts, root)
        elif facts.npz(root).is_file():
            read_npz(facts, root)
        elif facts.name == "tinyimagenet":
            listed(facts, root)
        elif wrong := checksum_mismatches(facts, root):
            return f"not the official file: {', '.join(wrong)}"
    except BadInput as error:
        return str(error)
    return ""


def fetch(facts: Dataset, root: Path, reporter: ProgressReporter | None = None) -> bool:
    """Download and unpack missing or damaged files. Returns whether there were any.

    Raises BadInput for a data set that cannot be downloaded, KdbenchError if a download fails.
    """
    reporter = reporter or NullReporter()
    if _ready(facts, root):
        return False
    if not facts.archives:
        raise BadInput(facts.how_to_get(root))
    with exclusive_lock(facts, root, reporter):
        npz = facts.npz(root)
        if npz.is_file() and (reason := find_damage(facts, root)):
            reporter.note(f"{reason}. It is quarantined as {quarantine(npz).name}.")
        if _ready(facts, root):
            return True
        for archive in facts.archives:
            folder = root if is_archive(Path(archive.name)) else root / facts.folder
            path = download(archive, folder, reporter)
            if is_archive(path):
                reporter.note(f"unpacking {path}")
                unpack(path, facts, root)
    return True


def _ready(facts: Dataset, root: Path) -> bool:
    return not facts.missing(root) and not find_damage(facts, root)


@dataclass(frozen=True)
class Status:
    """``state`` is ready, missing or damaged; ``bytes`` those of the files, 0 where whole folders are not measured."""

    name: str
    state: str
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    todo: str = ""


def status(facts: Dataset, root: Path, *, verify: bool = False) -> Status:
    """The state of a data set's files; ``verify`` compares checksums, or counts files that have none."""
    size = _size(facts, root)
    lacking = [str(path.relative_to(root)) for path in facts.lacking(root)]
    if lacking:
        return Status(facts.name, "missing", size, lacking, _get(facts, root))
    wrong = find_damage(facts, root) if verify else ""
    if wrong:
        todo = _get(facts, root)
        return Status(facts.name, "damaged", size, [], wrong if todo in wrong else f"{wrong}: {todo}")
    return Status(facts.name, "ready", size, [], _better(facts, root))


def _get(facts: Dataset, root: Path) -> str:
    if not facts.archives:
        return facts.by_hand
    parts = [folder / f"{a.name}.part" for a in facts.archives for folder in (root, root / facts.folder)]
    begun = sum(part.stat().st_size for part in parts if part.is_file())
    return command("data", "download", facts.name, data=root) + (f" (resumes at {begun:,} bytes)" if begun else "")


def _better(facts: Dataset, root: Path) -> str:
    if facts.name == "tinyimagenet" and not facts.npz(root).is_file():
        return f"{command('data', 'prepare', facts.name, data=root)} (or the first run decodes it)"
    return ""


def _size(facts: Dataset, root: Path) -> int:
    if facts.npz(root).is_file():
        return facts.npz(root).stat().st_size
    paths = [root / facts.folder / file for file in facts.files]
    if any(path.is_dir() for path in paths):
        return 0
    return sum(path.stat().st_size for path in paths if path.is_file())
