"""Python source that needs kdbench no more: definitions of kdbench's modules with all that they use, in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


TRAINING_ALONE = {"embed_from", "feature_modules", "final_modules", "last_norms"}
"""Methods of networks that only distillation calls."""


class _Module:
    """The top-level definitions of a module of kdbench, and what its names mean."""

    def __init__(self, name: str) -> None:
        spec = find_spec(name)
        assert spec
        assert spec.origin
        text = Path(spec.origin).read_text(encoding="utf-8")
        self.lines = text.splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        self.own: dict[str, tuple[str, str]] = {}
        for node in ast.parse(text).body:
            self._take(node)

    def _take(self, node: ast.stmt) -> None:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                self.definitions[node.name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                self.definitions[name] = node
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "kdbench":
                self.own |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    line = ast.unparse(_with_names(node, [alias]))
                    self.imports[alias.asname or alias.name.partition(".")[0]] = line

    def source(self, node: ast.stmt) -> str:
        """A definition as it is written, without what only training calls."""
        dropped = {line for each in _dropped(node) for line in range(_first_line(each), (each.end_lineno or 0) + 1)}
        first, last = _first_line(node), node.end_lineno or 0
        kept = [self.lines[number - 1] for number in range(first, last + 1) if number not in dropped]
        return "\n".join(line for i, line in enumerate(kept) if line or (i and kept[i - 1])).rstrip()


def _with_names(node: ast.Import | ast.ImportFrom, names: list[ast.alias]) -> ast.stmt:
    return ast.Import(names) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, names, node.level)


def _first_line(node: ast.stmt) -> int:
    """Of a definition with its decorators."""
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    return min([node.lineno, *(each.lineno for each in decorators)])


def _dropped(node: ast.stmt) -> list[ast.stmt]:
    """The methods of a class that only training calls."""
    if not isinstance(node, ast.ClassDef):
        return []
    return [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name in TRAINING_ALONE]


def _used(node: ast.stmt) -> list[str]:
    """The names that a definition reads, in the order of the text; annotations count."""
    dropped = {id(inner) for each in _dropped(node) for inner in ast.walk(each)}
    names = [each for each in ast.walk(node) if isinstance(each, ast.Name) and id(each) not in dropped]
    return list(dict.fromkeys(each.id for each in sorted(names, key=lambda name: (name.lineno, name.col_offset))))


def standalone(roots: Iterable[tuple[str, str]]) -> str:
    """The source of definitions, named by module and name, with all of kdbench that they use, and their imports.

    Raises KeyError for a definition that is not at the top level of its module.
    """
    modules: dict[str, _Module] = {}
    imports: dict[str, None] = {}
    texts: dict[tuple[str, str], str] = {}
    begun: set[tuple[str, str]] = set()

    def add(module: str, name: str) -> None:
        if (module, name) in begun:
            return
        begun.add((module, name))
        if module not in modules:
            modules[module] = _Module(module)
        here = modules[module]
        node = here.definitions[name]
        for used in _used(node):
            if used in here.definitions:
                add(module, used)
            elif used in here.own:
                add(*here.own[used])
            elif used in here.imports:
                imports[here.imports[used]] = None
        texts[module, name] = here.source(node)

    for module, name in roots:
        add(module, name)
    head = ["from __future__ import annotations", "", *sorted(imports)]
    return "\n\n\n".join(["\n".join(head), *texts.values()]) + "\n"
