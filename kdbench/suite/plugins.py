"""The code of the plug-ins that runs and teachers use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kdbench.catalogue.sources import Source, SourceFile
from kdbench.catalogue.terms import term
from kdbench.errors import BadInput
from kdbench.suite.specs import RunSpec, TeacherSpec


def sources_of(specs: Iterable[RunSpec | TeacherSpec]) -> Iterator[Source]:
    """The code of each plug-in, once."""
    for name, sha256 in dict.fromkeys(item for spec in specs for item in spec.plugins.items()):
        source = term(name, sha256).source
        if source:
            yield source


def folders_beside(specs: Iterable[RunSpec | TeacherSpec]) -> dict[str, Path]:
    """The folders of the plug-ins' top-level modules that are not on the import path.

    Raises BadInput where a name stands for different modules, which one process cannot tell apart.
    """
    files: dict[str, SourceFile] = {}
    folders: dict[str, Path] = {}
    for source in sources_of(specs):
        for file in source.files.values():
            other = files.setdefault(file.module, file)
            if other.content != file.content:
                raise BadInput(
                    f"{other.path} and {file.path} are both the module '{file.module}': give one of them another name, or "
                    "run their suites one after the other"
                )
        folders = {**source.beside, **folders}
    return folders
