"""The data sets that kdbench knows, read from datasets.yaml. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from kdbench.catalogue.names import normalise, unknown
from kdbench.errors import BadInput


@dataclass(frozen=True)
class Dataset:
    """One data set: image side in pixels, image counts, per-channel mean and std, and its files' MD5 sums."""

    name: str
    summary: str
    classes: int
    size: int
    train: int
    test: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aliases: tuple[str, ...] = ()
    folder: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def missing(self, root: Path) -> bool:
        """Whether files that must be downloaded first are absent below ``root``."""
        ready = (root / f"{self.name}.npz").is_file() or all(
            (root / self.folder / file).is_file() for file in self.files
        )
        return bool(self.files) and not ready

    def how_to_get(self, root: Path) -> str:
        """What to tell a user whose files are missing or damaged."""
        return (
            f"{self.name}: {root / self.folder} lacks one of the files {', '.join(self.files)}, "
            f"or one is not the official one. Name the folder that holds {self.folder}/ with --data, "
            "or let kdbench fetch it with --download."
        )


@cache
def datasets() -> dict[str, Dataset]:
    """All data sets by name."""
    text = files("kdbench.catalogue").joinpath("datasets.yaml").read_text(encoding="utf-8")
    entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: _dataset(name, entry) for name, entry in entries.items()}


def dataset(name: str) -> Dataset:
    """One data set by name or alias. Raises BadInput for an unknown name."""
    try:
        return _spellings()[normalise(name)]
    except KeyError:
        raise BadInput(unknown("dataset", name, datasets(), "datasets")) from None


@cache
def _spellings() -> dict[str, Dataset]:
    return {normalise(spelling): known for known in datasets().values() for spelling in (known.name, *known.aliases)}


def _dataset(name: str, entry: dict[str, object]) -> Dataset:
    for key in ("mean", "std", "aliases"):
        if key in entry:
            entry[key] = tuple(entry[key])  # type: ignore[arg-type]
    return Dataset(name=name, **entry)  # type: ignore[arg-type]
