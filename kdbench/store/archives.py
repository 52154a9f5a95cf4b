"""Archived suites and code on their way between results folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kdbench.catalogue.plugins import SourceFile, source_hash
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadRecord
from kdbench.files import write_bytes, write_json
from kdbench.store.reading import read
from kdbench.store.store import Store, exclusive, write_modules
from kdbench.store.suites import KeptSuite, about_of, all_kept
from kdbench.suite.components import hashed


def archived_files(folder: Path) -> Iterator[Path]:
    """The files below the folder of an archived suite or source, in order, without hidden ones, caches and links."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        paths = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def archived_suites(store: Store, problems: list[str]) -> Iterator[tuple[KeptSuite, dict[str, bytes]]]:
    """The archived suites with the content of their files but about.json, in the order in which they were run.

    ``problems`` gets a line for each that is not what was stored.
    """
    known = all_kept([store])
    folders = {kept.folder.name for kept in known}
    try:
        names = sorted(entry.name for entry in os.scandir(store.root / "suites") if entry.is_dir())
    except FileNotFoundError:
        names = []
    except OSError as error:
        problems.append(f"{store.root / 'suites'}: cannot be read: {error.strerror}")
        return
    for name in names:
        if name not in folders:
            problems.append(f"{store.root / 'suites' / name}: its about.json cannot be read, so the suite is not known")
    for kept in known:
        try:
            files = {str(path.relative_to(kept.folder)): read(str(path)) for path in archived_files(kept.folder)}
            if hashed(files.get(kept.file.name, b"").decode(errors="replace")) != kept.folder.name:
                raise BadRecord(f"{kept.file}: is not the suite that was stored")
        except OSError as error:
            problems.append(f"{error.filename}: cannot be read: {error.strerror}")
            continue
        except BadRecord as error:
            problems.append(str(error))
            continue
        files.pop("about.json", None)
        yield kept, files


def damaged_suites(store: Store) -> list[str]:
    """A line for each archived suite that is not what was stored."""
    problems: list[str] = []
    list(archived_suites(store, problems))
    return problems


def portable_about(kept: KeptSuite) -> bytes:
    """An archived suite's about.json without the folders of this machine, as if the suite had been in /.

    Paths that the suite itself names in full stay.
    """
    about = kept.about
    text, base = kept.text.decode(errors="replace"), os.path.dirname(about.file)

    def moved(path: str) -> str:
        return path if path in text else os.path.normpath(os.path.join(os.sep, os.path.relpath(path, base)))

    images = {}
    for key, facts in about.images.items():
        with suppress(ValueError, TypeError):  # of another version
            source = ImageSource.of_key(key)
            images[replace(source, path=moved(source.path)).key] = facts
    weights = {moved(path): sha256 for path, sha256 in about.weights.items()}
    file = os.sep if about.file.endswith(os.sep) else os.sep + os.path.basename(about.file)
    changes = {"file": file, "weights": weights, "images": images, "part": None}
    return about.model_copy(update=changes).model_dump_json(indent=1).encode()


def merge_suites(source: Store, target: Store, notes: list[str], *, dry_run: bool = False) -> set[str]:
    """Take over the archived suites that a store has not; returns their ids. ``notes`` gets what was left out, and why.

    Of one that both have, what is known of weights and images is put together. All its runs are of interest then, whatever
    part of them was trained in either place.
    """
    taken, problems = set(), list[str]()
    for kept, files in archived_suites(source, problems):
        folder = target.root / "suites" / kept.folder.name
        about, mine = kept.about, about_of(folder)
        if mine:
            facts = {"weights": {**about.weights, **mine.weights}, "images": {**about.images, **mine.images}}
            about = mine.model_copy(update=facts)
        about = about.model_copy(update={"part": None})
        if not mine:
            taken.add(kept.folder.name)
        if dry_run:
            continue
        with exclusive(folder):
            for name, content in files.items():
                path = folder / name
                if not path.exists():
                    write_bytes(path, content)
                elif path.read_bytes() != content:
                    notes.append(f"{kept.folder / name}: is not like {path}, which is kept")
            if about != mine:
                write_json(folder / "about.json", about.model_dump())
    notes += [f"{problem}: it is left out" for problem in problems]
    return taken


def merge_sources(source: Store, target: Store, notes: list[str], *, dry_run: bool = False) -> set[str]:
    """Take over the archived code that a store has not; returns its hashes. ``notes`` gets what was left out."""
    taken = set()
    for folder in sorted((source.root / "sources").glob("[0-9a-f]*")):
        try:
            if _source_hash(folder) != folder.name:
                raise BadRecord(f"{folder}: is not the code that was stored")
        except BadRecord as error:
            notes.append(f"{error}: it is left out")
            continue
        there = target.source_folder(folder.name)
        if there.is_dir() and _source_hash(there) == folder.name:
            continue
        taken.add(folder.name)
        if not dry_run:
            with exclusive(there):
                write_modules(_modules_of(folder), there)
    return taken


def _source_hash(folder: Path) -> str:
    return source_hash(sorted(_modules_of(folder), key=lambda file: file.module))


def _modules_of(folder: Path) -> list[SourceFile]:
    """The modules in the folder of an archived source."""
    return [
        SourceFile(".".join(_names(path.relative_to(folder))), path, read(str(path)))
        for path in archived_files(folder)
        if path.suffix == ".py"
    ]


def _names(path: Path) -> tuple[str, ...]:
    """The names of a module's packages, and its own, from the path of its file."""
    return path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
