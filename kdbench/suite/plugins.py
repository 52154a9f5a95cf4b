"""The code of the plug-ins that runs and teachers use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdbench.catalogue.sources import SourceFile
from kdbench.catalogue.terms import term
from kdbench.errors import BadInput
from kdbench.suite.specs import RunSpec, TeacherSpec


def folders_beside(specs: Iterable[RunSpec | TeacherSpec]) -> dict[str, Path]:
    """The folders of the plug-ins' top-level modules that are not on the import path.

    Raises BadInput where a name stands for different modules, which one process cannot tell apart.
    """
    files: dict[str, SourceFile] = {}
    folders: dict[str, Path] = {}
    for name, sha256 in dict.fromkeys(item for spec in specs for item in spec.plugins.items()):
        source = term(name, sha256).source
        for file in source.files.values() if source else ():
            other = files.setdefault(file.module, file)
            if other.content != file.content:
                raise BadInput(
                    f"{other.path} and {file.path} are both the module '{file.module}': give one of them another name, or "
                    "run their suites one after the other"
                )
        folders = {**(source.beside if source else {}), **folders}
    return folders
