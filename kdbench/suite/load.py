"""From suite files to validated suites. Every problem of every file is reported at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.catalogue.plugins import locating_modules
from kdbench.catalogue.text import shorten, unknown
from kdbench.errors import BadSuite, Problem
from kdbench.suite.grid import MOST_RUNS, Grid
from kdbench.suite.protocol import Protocol
from kdbench.suite.suite import Measurement, Run, Suite, tiny_suite
from kdbench.suite.validator import SuiteValidator
from kdbench.suite.yaml_reader import STDIN, Document, YamlPath, parse_yaml, read_yaml, write_yaml


def bundled_suites() -> dict[str, Path]:
    """The suites that come with kdbench, by name."""
    package = Path(__file__).parents[1]
    folders = [folder for folder in (package / "suites", package.parent / "suites") if folder.is_dir()]
    return {path.stem: path for folder in folders[:1] for path in sorted(folder.glob("[!.]*.yaml"))}


def find_suite(reference: str) -> Path:
    """Resolve a path (or pipe), `-` for standard input, or a bundled suite's name. Raises BadSuite if none exists."""
    path, known = Path(os.path.expanduser(reference)), bundled_suites()
    there = bool(reference) and os.path.exists(path)
    folder = there and os.path.isdir(path)
    if reference == STDIN or (there and not folder):
        return path
    if reference in known:
        return known[reference]
    if folder or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        message = f"{'is a folder' if folder else 'no such file'}. Bundled suites: {', '.join(known)}."
    else:
        message = unknown("suite", reference, known, "suites")
    raise BadSuite([Problem(shorten(reference, 300), 0, "", message)])


Known = Callable[[Document], None]
"""Tells a suite's document what is known of files that it names and that have moved."""


def load_suites(
    references: Sequence[str],
    trials: int | None = None,
    *,
    tiny: bool = False,
    known: Known | None = None,
    settings: Sequence[str] = (),
) -> list[Suite]:
    """Load several suites, each once, or the ``tiny`` counterpart of each.

    ``trials`` overrides what they say; tiny ones have one. ``settings`` such as ``protocol.epochs=5`` change the protocols of
    all. Raises BadSuite with the problems of all, or where they have more runs together than a command may have.
    """
    suites: dict[Path, Suite] = {}
    names: dict[str, str] = {}
    problems: list[Problem] = []
    for reference in references:
        try:
            path = find_suite(reference)
            if path.resolve() in suites:
                continue
            suite = suites[path.resolve()] = load_suite(path, trials, known, settings, tiny=tiny)
        except BadSuite as error:
            problems += error.problems
            continue
        other = names.setdefault(suite.name, suite.file)
        if other != suite.file:
            message = f"{other} is called '{suite.name}', too: give one of them another name"
            problems.append(Problem(suite.file, 1, "name", message))
        count = sum(len(each.runs) for each in suites.values())
        if count > MOST_RUNS:
            message = f"{count:,} runs with the suites before it, and a command takes {MOST_RUNS:,} at most"
            problems.append(Problem(suite.file, 0, "", f"{message}: name fewer suites"))
            break
    if problems:
        raise BadSuite(problems)
    return list(suites.values())


def load_suite(
    file: Path,
    trials: int | None = None,
    known: Known | None = None,
    settings: Sequence[str] = (),
    *,
    tiny: bool = False,
) -> Suite:
    """Load one suite file, or its ``tiny`` counterpart. Raises BadSuite with everything that is wrong with it."""
    document = read_yaml(file)
    if settings:
        _change(document, settings)
    if known:
        known(document)
    suite = read_suite(document, trials or (1 if tiny else None))
    return tiny_suite(suite) if tiny else suite


def read_suite(document: Document, trials: int | None = None) -> Suite:
    """Turn a document into a suite. Raises BadSuite with everything that is wrong with it."""
    folder = document.folder.resolve()
    runs: list[Run] = []
    measurements: list[Measurement] = []
    with locating_modules(lambda top: document.elsewhere(top) or folder):
        validator = SuiteValidator(document)
        name = validator.head.name or ("suite" if document.piped else _printable(Path(document.file).stem))
        for raw, path in _grids(document.data, validator):
            grid = Grid(raw, path, validator)
            grid_runs = grid.runs(name, trials)
            runs += grid_runs
            measurements += grid.measurements(grid_runs)
    if not runs and validator.clean:
        validator.report(("grid",), "describes no run")
    if problems := validator.all_problems():
        raise BadSuite(problems)
    return Suite(
        name,
        document.file,
        validator.head.description,
        runs=tuple({run.key: run for run in runs}.values()),
        weight_files={each.sha256: each.file for each in validator.teachers.values() if each.sha256 and each.file},
        image_sources=validator.image_sources,
        tables=tuple(dict.fromkeys(validator.head.tables)),
        devices_per_run=validator.head.devices_per_run,
        measurements=tuple(measurements),
        text=document.text,
        settings=tuple(dict.fromkeys(document.settings.values())),
        trials=trials,
    )


def _change(document: Document, settings: Sequence[str]) -> None:
    """Change a suite's protocols as if ``protocol.KEY=VALUE`` stood in the file; its text becomes what it says then."""
    data = document.data if isinstance(document.data, dict) else {}
    owners: list[tuple[YamlPath, dict[str, Any]]] = [((), data)]
    match data.get("grid"):
        case dict() as grid:
            owners.append((("grid",), grid))
        case list() as grids:
            owners += [(("grid", index), grid) for index, grid in enumerate(grids) if isinstance(grid, dict)]
    for setting in settings:
        option, keys, value = _setting(setting)
        for path, owner in owners:
            if "protocol" not in owner:
                continue
            if not isinstance(owner["protocol"], dict):
                owner["protocol"] = {"base": owner["protocol"]}
            document.settings[*path, *keys] = option
            for depth, key in enumerate(keys[:-1], 1):
                inner = owner.setdefault(key, {})
                if not isinstance(inner, dict):
                    name = ".".join(keys[:depth])
                    raise BadSuite([Problem(option, 0, "", f"{name} is {inner!r} and has no keys: write {name}=VALUE")])
                owner = inner
            owner[keys[-1]] = deepcopy(value)
    document.text = write_yaml(data)


def _setting(text: str) -> tuple[str, tuple[str, ...], Any]:
    """The option as messages name it, the keys, and the value, read as YAML. Raises BadSuite for what is neither."""
    option = f"--set {shorten(text, 200)}"
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or len(keys) < 2 or keys[0] != "protocol" or not all(keys):
        key = name if keys[0] in Protocol.model_fields else name.removeprefix(f"{keys[0]}.")
        known = key.partition(".")[0] in Protocol.model_fields
        hint = f". Did you mean 'protocol.{key}={value}'?" if equals and known else ""
        raise BadSuite([Problem(option, 0, "", f"write protocol.KEY=VALUE, such as protocol.epochs=5{hint}")])
    try:
        document = parse_yaml(value, option)
    except BadSuite as error:
        raise BadSuite([replace(each, line=0) for each in error.problems]) from None
    if document.problems:
        raise BadSuite([replace(each, line=0) for each in document.problems])
    return option, keys, document.data


def _printable(stem: str) -> str:
    """A file's name as that of a suite: read as UTF-8 in any locale, and what cannot be printed is replaced."""
    text = os.fsencode(stem).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _grids(data: dict[str, Any], validator: SuiteValidator) -> Iterator[tuple[dict[str, Any], YamlPath]]:
    """The grids that are mappings, with their places."""
    grids = data.get("grid")
    if isinstance(grids, dict):
        yield grids, ("grid",)
    elif not isinstance(grids, list) or not grids:
        validator.report(("grid",), "'grid' must be a list of grids, and hold at least one")
    else:
        for index, grid in enumerate(grids):
            if isinstance(grid, dict):
                yield grid, ("grid", index)
            else:
                validator.report(("grid", index), "must be a mapping (teacher: …, student: …, method: …)")
