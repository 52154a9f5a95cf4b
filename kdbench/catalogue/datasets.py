"""The data sets that kdbench knows, read from datasets.yaml. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from kdbench.catalogue.text import command, normalise, unknown
from kdbench.errors import BadInput


@dataclass(frozen=True)
class Archive:
    """A file that the data set's authors publish, and its MD5 sum."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Dataset:
    """One data set: image side in pixels, image counts, per-channel mean and std, and the files it is read from.

    ``files`` are paths below ``folder`` with their MD5 sums, None where the authors' own sum is that of the archive alone.
    ``archives`` are what those files come from; none where the data set cannot be downloaded, and ``by_hand`` then says how
    to get it. ``streamed`` says that its images stay files and are decoded in every epoch. ``class_names`` are in the order
    of the labels; without them the names are those of the class folders, sorted.
    """

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
    files: dict[str, str | None] = field(default_factory=dict)
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    streamed: bool = False
    class_names: tuple[str, ...] = ()

    def npz(self, root: Path) -> Path:
        """The one NumPy file that can take the place of all others."""
        return root / f"{self.name}.npz"

    def lacking(self, root: Path) -> list[Path]:
        """The files that are absent below ``root``."""
        if not self.streamed and self.npz(root).is_file():
            return []
        return [path for path in (root / self.folder / file for file in self.files) if not path.exists()]

    def missing(self, root: Path) -> bool:
        """Whether files that must be downloaded first are absent below ``root``."""
        return bool(self.lacking(root))

    def how_to_get(self, root: Path) -> str:
        """The message for missing or damaged files."""
        found = (
            f"{self.name}: {root / self.folder} lacks one of the files {', '.join(self.files)}, "
            f"or one is not the official one. Name the folder that holds {self.folder}/ with --data, "
        )
        if not self.archives:
            return found + f"or arrange it by hand: {self.by_hand}"
        return found + f"or let kdbench fetch it: {command('data', 'download', self.name, data=root)}, or --download."


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
    archives = tuple(Archive(**archive) for archive in entry.pop("archives", ()))  # type: ignore[attr-defined]
    for key in ("mean", "std", "aliases", "class_names"):
        if key in entry:
            entry[key] = tuple(entry[key])  # type: ignore[arg-type]
    return Dataset(name=name, archives=archives, **entry)  # type: ignore[arg-type]
