"""What the loss terms are, read from their source files. Nothing is imported, so torch is not either."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdbench.catalogue.names import nearest, normalise, unknown
from kdbench.errors import BadInput


PLUGINS = "kdbench.terms"
"""The group of entry points with which another package gives its terms short names."""


FACTS = (
    "paper",
    "reads",
    "needs_teacher",
    "requires",
    "full_batches",
    "initial",
    "auxiliary",
    "part",
    "copies",
    "version",
)
"""The constants of a term's class that describe it."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only argument of a term, as its source writes it."""

    annotation: str
    default: Any


@dataclass(frozen=True)
class TermInfo:
    """A term's facts: its place (``target`` is "package.module:Class"), docstring, constants and hyper-parameters."""

    name: str
    path: Path
    target: str
    summary: str
    description: str
    paper: str
    reads: str
    needs_teacher: bool
    requires: tuple[str, ...]
    full_batches: int
    part: tuple[str, ...] | None
    copies: int
    initial: bool
    auxiliary: str
    version: int
    hyperparameters: dict[str, Hyperparameter]

    def initial_epochs(self, given: Mapping[str, Any]) -> int:
        """How many epochs the term trains the student before the main training, with these hyper-parameters."""
        return int(given.get("initial_epochs", self.hyperparameters["initial_epochs"].default)) if self.initial else 0


@cache
def term_names() -> list[str]:
    """Short names of all terms: the bundled ones and those of installed packages."""
    return sorted({**_announced(), **_bundled()})


@cache
def term(name: str) -> TermInfo:
    """Facts of a term, by short name or "package.module:Class". Raises BadInput for what cannot be found or read."""
    if ":" in name:
        target = name
    else:
        name, given = normalise(name), name
        target = _in_its_file(name) or {**_announced(), **_bundled()}.get(name, "")
        if not target:
            raise BadInput(unknown("term", given, term_names(), "methods"))
    module, _, class_name = target.partition(":")
    classes = _lineage(_class(module, class_name))
    if _base() not in classes:
        classes.append(_base())
    description = ast.get_docstring(classes[0].node) or ""
    return TermInfo(
        name=name,
        path=classes[0].path,
        target=target,
        summary=description.partition("\n")[0],
        description=description,
        hyperparameters=_hyperparameters(classes),
        **{fact: _constant(fact, classes) for fact in FACTS},
    )


# Where terms are


def _base() -> _Class:
    return _class("kdbench.methods.term", "Term")


@cache
def _bundled() -> dict[str, str]:
    """Short name → "package.module:Class" of each file beside methods/term.py that defines a subclass of Term."""
    names = (normalise(file.stem) for file in sorted(_base().path.parent.glob("*.py")))
    return {name: target for name in names if (target := _in_its_file(name))}


@cache
def _in_its_file(name: str) -> str:
    """The bundled term of the file that has its name, so that one term costs the reading of one file; "" for none."""
    stem = name.replace("-", "_")
    file = _base().path.parent / f"{stem}.py"
    if stem.isidentifier() and os.path.isfile(file):  # where Path.is_file raises for a name that is too long
        module = f"kdbench.methods.{file.stem}"
        for node in _classes_of(file):
            if _base() in _lineage(_Class(module, file, node))[1:]:
                return f"{module}:{node.name}"
    return ""


@cache
def _announced() -> dict[str, str]:
    return {
        normalise(entry.name): f"{entry.module}:{entry.attr}"
        for entry in importlib.metadata.entry_points(group=PLUGINS)
    }


@cache
def _locate(module: str) -> Path | None:
    """Source file of a module. importlib's own search would import the packages above it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    origins = [Path(spec.origin)] if spec.origin and not rest else []
    folders = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()] if rest else []
    candidates = [*origins, *(f / "__init__.py" for f in folders), *(f.with_suffix(".py") for f in folders)]
    return next((path for path in candidates if path.suffix == ".py" and os.path.isfile(path)), None)


@cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise BadInput(f"{path}:{error.lineno}  {error.msg}") from error


# Classes and what they inherit


@dataclass(frozen=True)
class _Class:
    module: str
    path: Path
    node: ast.ClassDef


def _class(module: str, name: str) -> _Class:
    path = _locate(module)
    if path is None:
        raise BadInput(f"cannot find the module '{module}' (is its folder on PYTHONPATH?)")
    found = _find(f"{module}.{name}")
    if found is None:
        match = nearest(name, (node.name for node in _classes_of(path)))
        raise BadInput(f"there is no class '{name}' in {path}." + (f" Did you mean '{match}'?" if match else ""))
    return found


def _find(dotted: str) -> _Class | None:
    """Find the class that a dotted path means, following imports from module to module."""
    module, _, name = dotted.rpartition(".")
    path = _locate(module)
    if path is None:
        return None
    for node in _classes_of(path):
        if node.name == name:
            return _Class(module, path, node)
    source = _imported(module, path).get(name, dotted)
    return _find(source) if source != dotted else None


def _lineage(start: _Class) -> list[_Class]:
    """Return a class and, nearest first, those of its ancestors whose source is found."""
    imported = _imported(start.module, start.path)
    chain = [start]
    for base in start.node.bases:
        head, dot, rest = ast.unparse(base).partition(".")
        ancestor = _find(imported.get(head, f"{start.module}.{head}") + dot + rest)
        if ancestor is not None and ancestor != start:
            chain += [each for each in _lineage(ancestor) if each not in chain]
    return chain


def _classes_of(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in _parse(path).body if isinstance(node, ast.ClassDef))


def _imported(module: str, path: Path) -> dict[str, str]:
    """Name → dotted path of everything that a module imports."""
    names = {}
    for node in _parse(path).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level + (path.name == "__init__.py") or None] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            names.update({alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names})
    return names


def _hyperparameters(classes: list[_Class]) -> dict[str, Hyperparameter]:
    """Keyword-only arguments of the nearest ``__init__``; where it takes ``**others``, with those it passes on to."""
    found: dict[str, Hyperparameter] = {}
    for each in classes:
        init = next((n for n in each.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None:
            continue
        for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            value = _literal(default, f"the default of {argument.arg}", each)
            found.setdefault(argument.arg, Hyperparameter(annotation, value))
        if init.args.kwarg is None:
            break
    return found


def _constant(name: str, classes: list[_Class]) -> Any:
    """Value of a class constant, taken from the nearest class that sets it."""
    for each in classes:
        for node in each.node.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return _literal(getattr(node, "value", None), name, each)
    raise BadInput(f"{classes[-1].path} does not set {name}")


def _literal(node: ast.expr | None, what: str, owner: _Class) -> Any:
    """Evaluate a literal expression."""
    try:
        return ast.literal_eval(node or ast.Name("missing"))
    except ValueError:
        place = f"{owner.path}:{getattr(node, 'lineno', owner.node.lineno)}"
        raise BadInput(f"{place}  {owner.node.name}: {what} must be a literal") from None
