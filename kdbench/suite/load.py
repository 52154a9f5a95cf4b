"""From suite files to validated suites. Every problem of every file is reported at once."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.names import unknown
from kdbench.errors import BadInput, BadSuite, Problem
from kdbench.suite.fields import problems_of
from kdbench.suite.feasibility import infeasible
from kdbench.suite.methods import formula, parse_terms, reads_teacher
from kdbench.suite.protocols import ResolvedProtocol, bundled_protocol, derived_protocol, protocol_names
from kdbench.suite.schema import GridEntry, MethodEntry, Selector, Shared, SuiteHead
from kdbench.suite.specs import DatasetSpec, TermUse
from kdbench.suite.suite import Cell, Run, Suite, make_spec
from kdbench.suite.yaml_reader import Document, Path_, read_yaml


Terms = tuple[TermUse, ...]
_SHARED = tuple(Shared.model_fields)


def bundled_suites() -> dict[str, Path]:
    """The suites that come with kdbench, by name."""
    package = Path(__file__).parents[1]
    folders = [folder for folder in (package / "suites", package.parent / "suites") if folder.is_dir()]
    return {path.stem: path for folder in folders[:1] for path in sorted(folder.glob("*.yaml"))}


def find_suite(reference: str) -> Path:
    """A path, or the name of a bundled suite. Raises BadInput where there is neither."""
    path = Path(reference)
    if path.is_file():
        return path
    known = bundled_suites()
    if reference in known:
        return known[reference]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise BadInput(f"{reference}: no such file. Bundled suites: {', '.join(known)}.")
    raise BadInput(unknown("suite", reference, known, "suites"))


def load_suites(references: Sequence[str], trials: int | None = None) -> list[Suite]:
    """Load several suites; ``trials`` overrides what they say. Raises BadSuite with the problems of all of them."""
    suites, problems = [], []
    for reference in references:
        try:
            suites.append(load_suite(find_suite(reference), trials))
        except BadSuite as error:
            problems += error.problems
    if problems:
        raise BadSuite(problems)
    return suites


def load_suite(file: Path, trials: int | None = None) -> Suite:
    """Load one suite file. Raises BadSuite with everything that is wrong with it."""
    return _Loader(read_yaml(file), trials).load()


class _Loader:
    """Collects problems while it turns one document into a suite."""

    def __init__(self, document: Document, trials: int | None) -> None:
        self.document = document
        self.trials = trials
        self.problems: list[Problem] = list(document.problems)
        self.methods: dict[str, Terms] = {}

    def load(self) -> Suite:
        data = self.document.data
        if not isinstance(data, dict):
            raise BadSuite([Problem(self.document.file, 1, "", "a suite is a mapping with the key 'grid'")])
        head = self._validate(SuiteHead, data, ())
        for name, value in (data.get("methods") or {}).items() if isinstance(data.get("methods"), dict) else ():
            self.methods[name] = self._terms(value, ("methods", name))
        name = head.name if head and head.name else Path(self.document.file).stem
        runs = [run for grid, path in self._grids(data) for run in self._grid(name, grid, path, data)]
        if not runs and not self.problems:
            self._report(("grid",), "describes no run")
        if self.problems or head is None:
            raise BadSuite(self.problems)
        return Suite(name, self.document.file, head.description, tuple({run.key: run for run in runs}.values()))

    def _grids(self, data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path_]]:
        grids = data.get("grid")
        if isinstance(grids, dict):
            yield grids, ("grid",)
            return
        if not isinstance(grids, list) or not grids:
            self._report(("grid",) if "grid" in data else (), "'grid' must be a list of grids, and hold at least one")
            return
        for index, grid in enumerate(grids):
            if isinstance(grid, dict):
                yield grid, ("grid", index)
            else:
                self._report(("grid", index), "must be a mapping (teacher: …, student: …, method: …)")

    def _grid(self, suite: str, raw: dict[str, Any], path: Path_, data: dict[str, Any]) -> list[Run]:
        owner, here = (raw, path) if "protocol" in raw else (data, ())
        protocol = self._protocol(owner, here)
        inherited = {key: data[key] for key in _SHARED if key in data and key not in raw}
        grid = self._validate(GridEntry, {**inherited, **raw}, path, silent=inherited)
        if grid is None:
            return []
        known = {**_methods_of(protocol, owner), **self.methods}
        terms = {_method_name(e): self._method(e, known, (*path, "method", i)) for i, e in enumerate(grid.method)}
        if protocol is None:
            return []
        for dataset in grid.dataset:
            self._check_dataset(dataset, path)
        if not grid.dataset:
            self._report(path, "'dataset' is missing")
        if not grid.pairs and not grid.student:
            self._report(path, "'student' is missing (or give 'pairs' of teacher and student)")
        cells = self._select(grid, list(_cells(grid)), {**{m: t for m, t in known.items() if t}, **terms}, path)
        count = self.trials or grid.trials or protocol.settings.trials
        runs = []
        for cell in cells:
            method = terms.get(cell.method) or known.get(cell.method) or ()
            if method and self._possible(cell, method, protocol, path):
                specs = [make_spec(cell, method, protocol, trial) for trial in range(count)]
                runs += [Run(suite, protocol, cell.method, cell.teacher, cell.strategy, spec) for spec in specs]
        return runs

    def _protocol(self, owner: dict[str, Any], path: Path_) -> ResolvedProtocol | None:
        value, here = owner.get("protocol"), (*path, "protocol")
        try:
            if isinstance(value, str):
                return bundled_protocol(value)
            if isinstance(value, dict):
                return derived_protocol(value, replace(self.document, problems=[]), here)
        except BadSuite as error:
            self.problems += error.problems
            return None
        except BadInput as error:
            self._report(here, str(error))
            return None
        self._report(path, "'protocol' is missing: name one (kdbench list protocols), or {base: NAME, …changes}")
        return None

    def _method(self, entry: MethodEntry, known: dict[str, Terms], path: Path_) -> Terms:
        if entry.terms is not None:
            return self._terms(entry.terms, (*path, "terms"))
        if entry.name in known:
            return known[entry.name]
        if entry.name is None:
            self._report(path, "needs a 'name', or 'terms' such as {ce: 1, kd: 0.9}")
        elif known:
            self._report(path, unknown("method", entry.name, known, "methods"))
        return ()

    def _select(self, grid: GridEntry, cells: list[Cell], terms: dict[str, Terms], path: Path_) -> list[Cell]:
        for index, selector in enumerate(grid.exclude):
            kept = [cell for cell in cells if not _matches(selector, cell)]
            if len(kept) == len(cells):
                self._report((*path, "exclude", index), "matches no run of this grid")
            cells = kept
        for index, selector in enumerate(grid.include):
            here = (*path, "include", index)
            for name in selector.method or ():
                if name not in terms:
                    self._report((*here, "method"), unknown("method", name, terms, "methods"))
            if all(name in terms for name in selector.method or ()):
                cells += _cells(grid, selector)
        return list(dict.fromkeys(cells))

    def _possible(self, cell: Cell, terms: Terms, protocol: ResolvedProtocol, path: Path_) -> bool:
        reasons = []
        if reads_teacher(terms) and not cell.teacher:
            reasons = [f"method '{cell.method}' ({formula(terms)}) needs a teacher, and the grid names none"]
        elif reads_teacher(terms):
            reasons = [
                f"method '{cell.method}' cannot train {cell.student} with {cell.teacher}: {reason}. Exclude the pair."
                for reason in infeasible(cell.student, cell.teacher, terms)
            ]
            if cell.strategy != "pretrained" and protocol.settings.node_embedding is None:
                reasons.append(
                    f"strategy '{cell.strategy}' trains new layers on a frozen backbone, but protocol '{protocol.name}' "
                    "has none: set protocol: {base: …, node_embedding: 256}, or use the protocol 'ega'"
                )
        for reason in reasons:
            self._report((*path, "method"), reason)
        return not reasons

    def _check_dataset(self, spec: DatasetSpec, path: Path_) -> None:
        whole = datasets()[spec.name]
        limits = {
            "classes": whole.classes,
            "train_per_class": whole.train // whole.classes,
            "test_per_class": whole.test // whole.classes,
        }
        for key, limit in limits.items():
            value = getattr(spec, key)
            if value is not None and value > limit:
                self._report(
                    (*path, "dataset", key), f"{spec.name} has only {limit} {key.replace('_', ' ')}, not {value}"
                )

    def _terms(self, value: Any, path: Path_) -> Terms:
        return parse_terms(value, lambda inner, message: self._report((*path, *inner), message))

    def _validate(self, schema: type[Any], value: dict[str, Any], path: Path_, silent: Container[str] = ()) -> Any:
        """Validate a mapping. What is wrong is reported (but for the keys in ``silent``) and left out of the result.

        So the checks that follow see all the rest. Returns None where too little is left.
        """
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            details = error.errors()
            found = problems_of(error, self.document, path, schema.model_fields)
        traps = tuple(problem.path for problem in self.document.problems)
        for problem, detail in zip(found, details, strict=True):
            own = not detail["loc"] or detail["loc"][0] not in silent
            if own and not problem.path.startswith(traps or ("\0",)):
                self.problems.append(problem)
        try:
            return schema.model_validate(_without(value, [detail["loc"] for detail in details]))
        except ValidationError:
            return None

    def _report(self, path: Path_, message: str) -> None:
        self.problems.append(self.document.problem(path, message))


def _cells(grid: GridEntry, selector: Selector | None = None) -> Iterator[Cell]:
    """The product of a grid's axes; the axes that ``selector`` names are replaced by its values."""
    selector = selector or Selector()
    methods = selector.method or [_method_name(entry) for entry in grid.method]
    data = [d for d in grid.dataset if selector.dataset is None or d.name in selector.dataset]
    strategies = selector.strategy or grid.strategy
    pairs = _pairs(grid, selector)
    for (teacher, student), dataset, strategy, scenario, method in product(
        pairs, data, strategies, grid.scenario, methods
    ):
        yield Cell(teacher, student, method, DatasetSpec(**dataset.model_dump()), strategy, scenario)


def _pairs(grid: GridEntry, selector: Selector) -> list[tuple[str, str]]:
    own = [(pair.teacher, pair.student) for pair in grid.pairs]
    own += product(grid.teacher or ("",), grid.student)
    if not selector.teacher and not selector.student:
        return own
    teachers = selector.teacher or tuple(dict.fromkeys(teacher for teacher, _ in own))
    students = selector.student or tuple(dict.fromkeys(student for _, student in own))
    return list(product(teachers, students))


def _matches(selector: Selector, cell: Cell) -> bool:
    wanted = {
        "teacher": cell.teacher,
        "student": cell.student,
        "method": cell.method,
        "dataset": cell.dataset.name,
        "strategy": cell.strategy,
    }
    given = {key: getattr(selector, key) for key in wanted}
    return all(values is None or wanted[key] in values for key, values in given.items())


def _method_name(entry: MethodEntry) -> str:
    return entry.name or "+".join(entry.terms or ())


def _without(value: dict[str, Any], locations: list[tuple[str | int, ...]]) -> dict[str, Any]:
    """The mapping without its wrong keys, and without the wrong items of its lists."""
    wrong_items = {key: {loc[1] for loc in locations if loc[:1] == (key,) and len(loc) > 1} for key in value}
    result = {}
    for key, content in value.items():
        if isinstance(content, list) and all(isinstance(index, int) for index in wrong_items[key]):
            result[key] = [item for index, item in enumerate(content) if index not in wrong_items[key]]
        elif not any(loc[:1] == (key,) for loc in locations):
            result[key] = content
    return result


def _methods_of(protocol: ResolvedProtocol | None, owner: dict[str, Any]) -> dict[str, Terms]:
    """The methods of a protocol; where that could not be read, those of the one that it changes."""
    if protocol is not None:
        return protocol.methods
    value = owner.get("protocol")
    base = value.get("base") if isinstance(value, dict) else None
    return bundled_protocol(base).methods if base in protocol_names() else {}
