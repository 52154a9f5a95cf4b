"""The loss terms and their costs, read from source files without importing them (so torch stays out)."""

from __future__ import annotations

import ast
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kdbench.catalogue.plugins import (
    MODULE_LOCATOR,
    NOT_READ,
    ModuleLocator,
    Source,
    absolute,
    locate,
    parse,
    read_source,
    source_file,
)
from kdbench.catalogue.text import nearest, normalise, unknown
from kdbench.errors import BadInput


PLUGINS = "kdbench.terms"
"""The group of entry points with which another package gives its terms short names."""


TERM_CONSTANTS = (
    "paper",
    "reads",
    "needs_teacher",
    "reads_maps",
    "requires",
    "full_batches",
    "initial",
    "auxiliary",
    "part",
    "views",
    "version",
    "bf16_version",
)
"""The constants of a term's class that describe it."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only argument of a term, as its source writes it."""

    annotation: str
    default: Any


@dataclass(frozen=True)
class TermInfo:
    """A term's facts: its place (``target`` is "package.module:Class"), docstring, constants and hyper-parameters.

    ``source`` is the code of one that does not come with kdbench.
    """

    name: str
    path: Path
    target: str
    summary: str
    description: str
    paper: str
    reads: str
    needs_teacher: bool
    reads_maps: bool | str
    requires: tuple[str, ...]
    full_batches: int
    part: tuple[str, ...] | None
    views: int
    initial: bool
    auxiliary: str
    version: int
    bf16_version: int
    hyperparameters: dict[str, Hyperparameter]
    source: Source | None = None

    @property
    def source_sha256(self) -> str | None:
        """The hash of its source; None for a bundled term, for which its `version` stands."""
        return self.source.sha256 if self.source else None

    def needs_maps(self, given: Mapping[str, Any]) -> bool:
        """Whether the term reads the teacher's maps, with these hyper-parameters."""
        if not self.needs_teacher or isinstance(self.reads_maps, bool):
            return self.needs_teacher and bool(self.reads_maps)
        return bool(given.get(self.reads_maps, self.hyperparameters[self.reads_maps].default))

    def initial_epochs(self, given: Mapping[str, Any]) -> int:
        """The epochs in which the term pre-trains the student, with these hyper-parameters."""
        return int(given.get("initial_epochs", self.hyperparameters["initial_epochs"].default)) if self.initial else 0


@cache
def term_names() -> list[str]:
    """Short names of all terms: the bundled ones and those of installed packages."""
    return sorted({**_entry_points(), **_bundled()})


def term(name: str, source_sha256: str | None = None) -> TermInfo:
    """Facts of a term, by short name or "package.module:Class". Raises BadInput for what cannot be found or read.

    With ``source_sha256``, those of the code that is known by it: as it was read before, or else as it is now.
    """
    if source_sha256 is None:
        return _term(name, _locator_for(name))
    if (name, source_sha256) not in _READ:
        info = _term(name, _locator_for(name))
        if info.source_sha256 != source_sha256:
            raise BadInput(
                f"{name} is not what it was when the run was planned: {info.path}, or what it imports, has changed since. "
                "Run the same command again to train with the new code"
            )
    return _READ[name, source_sha256]


_READ: dict[tuple[str, str], TermInfo] = {}
"""The terms that do not come with kdbench, by name and code, as far as they have been read."""


def _locator_for(name: str) -> ModuleLocator | None:
    """The locator that resolves a name to code; None for a bundled term, which is the same for all suites."""
    return None if ":" not in name and _bundled_target(normalise(name)) else MODULE_LOCATOR.get()


@lru_cache(maxsize=1024)
def _term(name: str, beside: ModuleLocator | None) -> TermInfo:
    """``term`` with an explicit locator."""
    if ":" in name:
        target = name
    else:
        name, given = normalise(name), name
        target = _bundled_target(name) or {**_entry_points(), **_bundled()}.get(name, "")
        if not target:
            raise BadInput(unknown("term", given, term_names(), "methods"))
    module, _, class_name = target.partition(":")
    try:
        classes = _lineage(_class(module, class_name))
    except RecursionError:
        raise BadInput(f"'{target}': its imports, or the classes from which it inherits, go in a circle") from None
    own = module.partition(".")[0] != "kdbench"
    if not _may_be_term(classes):
        raise BadInput(f"'{target}' is no loss term: it must be a subclass of kdbench.methods.Term")
    if _base() not in classes:
        classes.append(_base())
    description = ast.get_docstring(classes[0].node) or ""
    info = TermInfo(
        name=name,
        path=classes[0].path,
        target=target,
        summary=description.partition("\n")[0],
        description=description,
        hyperparameters=_hyperparameters(classes),
        source=read_source(module, [each.module for each in classes]) if own else None,
        **{fact: _constant(fact, classes) for fact in TERM_CONSTANTS},
    )
    if not isinstance(info.reads_maps, bool) and info.reads_maps not in [*info.hyperparameters]:
        raise BadInput(
            f"'{target}': reads_maps is {info.reads_maps!r}, and neither True, False nor a hyper-parameter's name"
        )
    if info.source:
        _READ[name, info.source.sha256] = info
    return info


# Where terms are


@cache
def _base() -> _Class:
    return _class("kdbench.methods.term", "Term")


@cache
def _bundled() -> dict[str, str]:
    """Short name → "package.module:Class" of each file in methods/ that defines a subclass of Term."""
    names = (normalise(file.stem) for file in sorted(_base().path.parent.glob("[!.]*.py")))
    return {name: target for name in names if (target := _bundled_target(name))}


@cache
def _bundled_target(name: str) -> str:
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
def _entry_points() -> dict[str, str]:
    return {
        normalise(entry.name): f"{entry.module}:{entry.attr}"
        for entry in importlib.metadata.entry_points(group=PLUGINS)
    }


# Classes and what they inherit


@dataclass(frozen=True)
class _Class:
    module: str
    path: Path
    node: ast.ClassDef


def _class(module: str, name: str) -> _Class:
    path = source_file(module)
    found = _find(f"{module}.{name}")
    if found is None:
        match = nearest(name, (node.name for node in _classes_of(path)))
        raise BadInput(f"there is no class '{name}' in {path}." + (f" Did you mean '{match}'?" if match else ""))
    return found


def _find(dotted: str) -> _Class | None:
    """Find the class that a dotted path means, following imports from module to module."""
    module, _, name = dotted.rpartition(".")
    path = locate(module)
    if path is None:
        return None
    for node in _classes_of(path):
        if node.name == name:
            return _Class(module, path, node)
    source = _imported(module, path).get(name, dotted)
    return _find(source) if source != dotted else None


def _lineage(start: _Class) -> list[_Class]:
    """Return a class and, nearest first, those of its ancestors whose source is found."""
    chain = [start]
    for base in _bases(start):
        ancestor = _find(base)
        if ancestor is not None and ancestor != start:
            chain += [each for each in _lineage(ancestor) if each not in chain]
    return chain


def _bases(of: _Class) -> list[str]:
    """The dotted paths of what a class inherits."""
    imported = _imported(of.module, of.path)
    parts = [ast.unparse(base).partition(".") for base in of.node.bases]
    return [imported.get(head, f"{of.module}.{head}") + dot + rest for head, dot, rest in parts]


def _may_be_term(classes: list[_Class]) -> bool:
    """Whether a class inherits Term, or something of another package whose source is not found."""
    others = (base for each in classes for base in _bases(each) if _find(base) is None)
    return _base() in classes or any(base.partition(".")[0] not in NOT_READ for base in others)


def _classes_of(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in parse(path).body if isinstance(node, ast.ClassDef))


def _imported(module: str, path: Path) -> dict[str, str]:
    """Name → dotted path of everything that a module imports, for type checkers included."""
    names = {}
    for node in _statements(parse(path).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, module, path)
            names.update({alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names})
    return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, and those below ``if TYPE_CHECKING``: kdbench itself imports its public names lazily."""
    for node in body:
        yield from node.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else [node]


def _hyperparameters(classes: list[_Class]) -> dict[str, Hyperparameter]:
    """The keyword-only arguments of the nearest ``__init__``; with ``**others``, those of its ancestors, too."""
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


@dataclass(frozen=True)
class Cost:
    """A method's step with one pair of networks.

    time, memory: as multiples of those of kd's step; memory is the growth of the process up to its peak
    parameters:   how many numbers the method trains beside the student's own
    teacher:      the teacher of the pair, or the auxiliary in its place; "none" where the method has no teacher
    """

    time: float
    memory: float
    parameters: int
    teacher: str


@dataclass(frozen=True)
class Costs:
    """All measured methods, by name, and how they were measured; ``date`` is an ISO date."""

    machine: str
    date: str
    student: str
    batch: int
    methods: dict[str, Cost]

    def of(self, method: str) -> Cost | None:
        """A method's cost, by either spelling of its name; None if it was not measured."""
        return self.methods.get(normalise(method))

    def how(self, cost: Cost) -> str:
        """The conditions of a method's cost measurement, in one line."""
        pair = f"{cost.teacher} → {self.student}" if cost.teacher != "none" else f"{self.student} without a teacher"
        return f"{pair}, batch {self.batch}, images as CIFAR-100's; {self.machine}, {self.date}"


@cache
def costs() -> Costs:
    """The measured costs."""
    text = files("kdbench.catalogue").joinpath("costs.yaml").read_text(encoding="utf-8")
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    methods = {normalise(name): Cost(**values) for name, values in raw["methods"].items()}
    return Costs(raw["machine"], str(raw["date"]), raw["student"], raw["batch"], methods)
