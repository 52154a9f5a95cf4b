"""Imports plug-ins from the very bytes of which their hash was taken."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from kdbench.catalogue.sources import Source, SourceFile, find
from kdbench.errors import BadInput


def import_plugin(source: Source, module: str) -> ModuleType:
    """Import a module of a plug-in. Raises BadInput where this process has other code of the same name."""
    finder = next((each for each in sys.meta_path if isinstance(each, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    finder.admit(source)
    return importlib.import_module(module)


class _Finder(MetaPathFinder):
    """Finds the files of plug-ins before the import path is asked, so that nothing can come between hash and import."""

    of_plugins = True

    def __init__(self) -> None:
        self.files: dict[str, SourceFile] = {}
        self.folders: dict[str, Path] = {}
        """Of packages without ``__init__.py``, which the import path may not have."""

    def admit(self, source: Source) -> None:
        for name, file in source.files.items():
            known = self.files.get(name)
            there = getattr(sys.modules.get(name), "__file__", None)
            if (known and known.content != file.content) or (there and Path(there).resolve() != file.path.resolve()):
                raise BadInput(f"{file.path}: other code of the module '{name}' was imported before. Start Python anew")
        self.files |= source.files
        for name, file in source.files.items():
            folder = file.path.parent.parent if file.is_package else file.path.parent
            while "." in name:
                name = name.rpartition(".")[0]
                self.folders[name], folder = folder, folder.parent

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self.files.get(fullname)
        if file:
            inner = [str(file.path.parent)] if file.is_package else None
            loader = _Loader(fullname, str(file.path))
            loader.content = file.content
            return spec_from_file_location(fullname, file.path, loader=loader, submodule_search_locations=inner)
        if fullname in self.folders:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self.folders[fullname])]
            return spec
        top, dot, _ = fullname.partition(".")
        if dot and top in {name.partition(".")[0] for name in self.files} and find(fullname) is not None:
            raise ImportError(
                f"'{fullname}' is no part of the run's identity, because no import statement of the plug-in names it: write "
                f"'import {fullname}'",
                name=fullname,
            )
        return None


class _Loader(SourceFileLoader):
    content: bytes

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.content, self.path)
        return code
