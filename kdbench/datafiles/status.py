"""What is there of a data set, and what to do about the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdbench.catalogue.commands import command
from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.damage import damage


@dataclass(frozen=True)
class Status:
    """``state`` is ready, missing or damaged; ``bytes`` those of the files, 0 where whole folders are not measured."""

    name: str
    state: str
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    todo: str = ""


def status(facts: Dataset, root: Path, *, verify: bool = False) -> Status:
    """Look at a data set's files; with ``verify``, compare their sums and count what has none."""
    size = _size(facts, root)
    lacking = [str(path.relative_to(root)) for path in facts.lacking(root)]
    if lacking:
        return Status(facts.name, "missing", size, lacking, _get(facts, root))
    wrong = damage(facts, root) if verify else ""
    if wrong:
        todo = _get(facts, root)
        return Status(facts.name, "damaged", size, [], wrong if todo in wrong else f"{wrong}: {todo}")
    return Status(facts.name, "ready", size, [], _better(facts, root))


def _get(facts: Dataset, root: Path) -> str:
    if not facts.archives:
        return facts.by_hand
    parts = [folder / f"{a.name}.part" for a in facts.archives for folder in (root, root / facts.folder)]
    begun = sum(part.stat().st_size for part in parts if part.is_file())
    return command("data", "download", facts.name, data=root) + (f" (goes on at {begun:,} bytes)" if begun else "")


def _better(facts: Dataset, root: Path) -> str:
    if facts.name == "tinyimagenet" and not facts.packed(root).is_file():
        return f"{command('data', 'prepare', facts.name, data=root)} (or the first run decodes it)"
    return ""


def _size(facts: Dataset, root: Path) -> int:
    if facts.packed(root).is_file():
        return facts.packed(root).stat().st_size
    paths = [root / facts.folder / file for file in facts.files]
    if any(path.is_dir() for path in paths):
        return 0
    return sum(path.stat().st_size for path in paths if path.is_file())
