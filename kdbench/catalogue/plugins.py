"""Source code of loss terms that kdbench does not ship: where it lies, its hash, how it is imported.

A plug-in's source is the file of its module and those of its class's ancestors, and in turn what these import from the same
package; in a folder without installed packages, what they import from that folder. The hash covers the files' bytes and the
modules' names; where the files lie does not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

import kdbench
from kdbench.errors import BadInput


ModuleLocator = Callable[[str], Path | None]
"""The folder in which a top-level module is looked for that is not on the import path."""


def _nowhere(top: str) -> Path | None:
    return None


MODULE_LOCATOR: ContextVar[ModuleLocator] = ContextVar("beside", default=_nowhere)
"""Locates modules that are not on the import path, such as those next to the suite."""


@contextmanager
def locating_modules(folder_of: ModuleLocator) -> Iterator[None]:
    """Look for modules that are not on the import path in these folders."""
    importlib.invalidate_caches()
    token = MODULE_LOCATOR.set(folder_of)
    try:
        yield
    finally:
        MODULE_LOCATOR.reset(token)


@dataclass(frozen=True)
class SourceFile:
    """The file of a module, and its bytes when they were read."""

    module: str
    path: Path
    content: bytes

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def name(self) -> str:
        """Its path from the folder on in which its top-level module lies."""
        return self.module.replace(".", "/") + ("/__init__.py" if self.is_package else ".py")


@dataclass(frozen=True)
class Source:
    """All source files of a plug-in, by module, and the folders of the top-level modules that are not on the import path."""

    files: Mapping[str, SourceFile]
    beside: Mapping[str, Path]
    sha256: str

    @property
    def local_files(self) -> list[SourceFile]:
        """The files that are not on the import path."""
        return [file for file in self.files.values() if file.module.partition(".")[0] in self.beside]


def read_source(target: str, lineage: Iterable[str]) -> Source:
    """The source of the module ``target``, in which ``lineage`` are the modules of the class and its ancestors.

    Raises BadInput where it cannot be read, or imports what is not there.
    """
    root, top = _root(target), target.partition(".")[0]
    root_of = cache(_root)
    ancestors = [module for module in lineage if module.partition(".")[0] not in NOT_READ]
    queue = list(dict.fromkeys([target, *ancestors]))
    files: dict[str, SourceFile] = {}

    def own(module: str) -> bool:
        first = module.partition(".")[0]
        return first == top or (first not in NOT_READ and root is not None and root_of(first) == root)

    for module in queue:
        file = _read(module)
        if file is None or module in files:
            continue
        files[module] = file
        if own(module):
            found = _check_imports(file, own)
            queue += [each for name in (*found, module) for each in (*_parents(name), name)]
    content = dict(sorted(files.items()))
    sha256 = source_hash(content.values())
    SOURCES[sha256] = Source(content, dict(filter(None, map(_beside, content))), sha256)
    return SOURCES[sha256]


def source_hash(files: Iterable[SourceFile]) -> str:
    """The hash of a plug-in's code from its files in the order of their modules' names."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{len(file.content)}\0".encode() + file.content)
    return total.hexdigest()


SOURCES: dict[str, Source] = {}
"""All code that was read, by its hash."""


NOT_READ = {"kdbench", "torch", *sys.stdlib_module_names}
"""Top-level modules that are known by their version."""


def find(module: str) -> ModuleSpec | None:
    """The spec of a module on the import path, else next to the suite. Its parent packages are not imported."""
    top, *rest = module.split(".")
    found = _within(_on_path(top), rest)
    folder = MODULE_LOCATOR.get()(top) if found is None else None
    return _within(in_folder(top, folder), rest) if folder else found


def locate(module: str) -> Path | None:
    """The source file of a module; None if it has none."""
    return _bundled(module) if module.startswith("kdbench.") else _python_file(find(module))


@cache
def _bundled(module: str) -> Path | None:
    return _python_file(find(module))


def source_file(module: str) -> Path:
    """The source file of a module. Raises BadInput, with the reason, if it has none."""
    top = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        raise BadInput(f"'{module}' is no name of a module: write package.module:Class")
    if top in sys.stdlib_module_names:
        raise BadInput(f"'{top}' is a module of Python's own library: give yours another name")
    folder = MODULE_LOCATOR.get()(top) if top != "kdbench" else None
    ours, theirs = _place(in_folder(top, folder) if folder else None), _place(_on_path(top))
    if ours and theirs and ours.resolve() != theirs.resolve():
        raise BadInput(f"'{top}' is {theirs}, which hides {ours}: give the latter another name")
    spec = find(module)
    if spec is None:
        raise BadInput(f"cannot find the module '{module}': it must lie beside the suite, or be installed")
    path = _python_file(spec)
    if path is None:
        raise BadInput(
            f"the source of '{module}' cannot be read ({spec.origin or 'a folder'}), so nothing would tell old results from "
            "those of changed code: a term must stand in a .py file"
        )
    return path


@lru_cache(maxsize=1024)
def _parsed(path: Path, content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except SyntaxError as error:
        raise BadInput(f"{path}:{error.lineno}  {error.msg}") from error
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises BadInput if it cannot be read."""
    try:
        return _parsed(path, path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error


def absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The module from which an import statement in ``module`` takes names."""
    parents = module.split(".")[: -node.level + (path.name == "__init__.py") or None] if node.level else []
    return ".".join([*parents, *filter(None, [node.module])])


# Finding


def _on_path(top: str) -> ModuleSpec | None:
    """Find a top-level module on the import path, regardless of what is imported; kdbench itself is known."""
    if top == "kdbench":
        return kdbench.__spec__
    for finder in sys.meta_path:
        look = getattr(finder, "find_spec", None)
        if look is not None and not getattr(finder, "of_plugins", False):
            spec: ModuleSpec | None = look(top, None)
            if spec is not None:
                return spec
    return None


def in_folder(top: str, folder: Path) -> ModuleSpec | None:
    """The spec of a top-level module in a folder."""
    return PathFinder.find_spec(top, [str(folder)])


def _beside(module: str) -> tuple[str, Path] | None:
    """The top-level module, and the folder in which it was found, of a module that is not on the import path."""
    top, *rest = module.split(".")
    folder = MODULE_LOCATOR.get()(top) if _within(_on_path(top), rest) is None else None
    return (top, folder) if folder else None


def _within(spec: ModuleSpec | None, rest: list[str]) -> ModuleSpec | None:
    """A module below a package."""
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", list(spec.submodule_search_locations))
    return spec


def _python_file(spec: ModuleSpec | None) -> Path | None:
    path = Path(spec.origin) if spec and spec.origin and spec.has_location else None
    return path if path and path.suffix == ".py" and os.path.isfile(path) else None


def _place(spec: ModuleSpec | None) -> Path | None:
    """The file of a module, or the folder of a package."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def _root(module: str) -> Path | None:
    """The folder in which a top-level module lies; None for one with installed packages."""
    place = _place(find(module.partition(".")[0]))
    if place is None:
        return None
    root = place.resolve().parent
    return None if root.name in ("site-packages", "dist-packages") or any(root.glob("*.dist-info")) else root


# Reading


def _read(module: str) -> SourceFile | None:
    """The file of a module; None if it has none, such as a folder without ``__init__.py``."""
    spec = find(module)
    path = _python_file(spec)
    if path is not None:
        try:
            return SourceFile(module, path, path.read_bytes())
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from error
    if spec is not None and spec.origin and spec.has_location:
        what = "is compiled" if spec.origin.endswith(tuple(EXTENSION_SUFFIXES)) else "has no source file"
        raise BadInput(
            f"'{module}' {what} ({spec.origin}), so nothing would tell old results from those of changed code: put it into "
            "an installed package of its own"
        )
    return None


def _parents(module: str) -> list[str]:
    """The packages on the way to a module."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _check_imports(file: SourceFile, own: Callable[[str], bool]) -> list[str]:
    """The plug-in's own imports in a file. Raises BadInput for one that is not found, unless it is conditional."""
    tree = _parsed(file.path, file.content)
    always = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bases, names = [alias.name for alias in node.names], []
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, file.module, file.path)
            if node.level > file.module.count(".") + file.is_package:
                raise BadInput(
                    f"{file.path}:{node.lineno}  imports relatively beyond its package: write the module's name"
                )
            bases, names = [base], [f"{base}.{alias.name}" for alias in node.names if alias.name != "*"]
        else:
            continue
        for base in bases if id(node) in always else ():
            known = base if own(base) or base.startswith("kdbench.") else base.partition(".")[0]
            if find(known) is None:
                raise BadInput(f"{file.path}:{node.lineno}  imports '{known}', which cannot be found")
        found += [name for name in (*bases, *names) if own(name) and find(name) is not None]
    return found


def import_plugin(source: Source, module: str) -> ModuleType:
    """Import a plug-in's module. Raises BadInput if this process has other code of the same name."""
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
            elsewhere = not known and there and Path(there).resolve() != file.path.resolve()
            if (known and known.content != file.content) or elsewhere:
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
