"""Methods: named weighted sums of loss terms in protocols and suites, and the plug-in code they use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdbench.catalogue.hyperparameters import check_hyperparameters
from kdbench.catalogue.plugins import SOURCES, Source, SourceFile
from kdbench.catalogue.terms import term
from kdbench.errors import BadInput
from kdbench.suite.plain_errors import shorten
from kdbench.suite.specs import RunSpec, Stage, WeightedTerm
from kdbench.suite.yaml_reader import YamlPath


ReportProblem = Callable[[YamlPath, str], None]
Terms = tuple[WeightedTerm, ...]
MOST_WEIGHT = 1e9


def parse_terms(value: Any, report: ReportProblem) -> Terms:
    """Read ``{ce: 0.1, kd: {weight: 0.9, temperature: 4}}``; what is wrong goes to ``report(path, message)``.

    Sorted by name, without terms of weight 0 and without hyper-parameters that equal the default, so that two ways of
    writing one method are the same method. Empty where the method cannot be used as it is written.
    """
    if not isinstance(value, dict) or not value:
        report((), "must be a sum of terms, such as {ce: 1, kd: 0.9}")
        return ()
    uses = [_parse_use(name, entry, report) for name, entry in value.items()]
    terms = [use for use in uses if use is not None]
    for name, count in Counter(use.name for use in terms).items():
        if count > 1:
            report((), f"the term '{name}' is given {count} times: add the weights up")
    if len(terms) < len(uses):
        return ()
    terms = [use for use in terms if use.weight]
    if not terms:
        report((), "every weight is 0")
    initial = [use.name for use in terms if term(use.name).initial]  # they train the student before the main training
    if len(initial) > 1:
        report((), f"{' and '.join(initial)} train the student before the main training: only one term of a method may")
    elif initial and len(initial) == len(terms):
        report((), f"{initial[0]} is 0 in the main training: add what the student learns from then, such as ce: 1")
    return tuple(sorted(terms, key=lambda use: use.name))


def _parse_use(name: str, entry: Any, report: ReportProblem) -> WeightedTerm | None:
    try:
        info = term(name)
    except BadInput as error:
        report((name,), str(error))
        return None
    options = dict(entry) if isinstance(entry, dict) else {"weight": entry}
    weight = options.pop("weight", 1.0)
    wrong = check_hyperparameters(info, options)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        wrong.append(("weight", f"the weight must be a number, not {shorten(weight)}"))
    elif not abs(weight) <= MOST_WEIGHT:
        wrong.append(("weight", f"the weight must be at most {MOST_WEIGHT:g}, not {weight:g}: more only overflows"))
    for key, message in wrong:
        report((name, key), message)
    if wrong:
        return None
    changed = {}  # the hyper-parameters that differ from the defaults; an integer becomes a float if the default is one
    for key, value in options.items():
        default = info.hyperparameters[key].default
        if value != default or isinstance(value, bool) != isinstance(default, bool):
            changed[key] = float(value) if isinstance(default, float) and isinstance(value, int) else value
    version, source_sha256 = info.version, info.source_sha256
    return WeightedTerm(
        name=info.name, weight=weight, hyperparameters=changed, version=version, source_sha256=source_sha256
    )


def reads_teacher(terms: Terms) -> bool:
    """Whether any of the terms needs a teacher."""
    return any(term(use.name, use.source_sha256).needs_teacher for use in terms)


def in_bf16(terms: Terms) -> Terms:
    """The terms of a bf16 run. Their versions count what changes bf16 runs alone, too."""
    extra = [term(use.name, use.source_sha256).bf16_version for use in terms]
    return tuple(
        use.model_copy(update={"version": use.version + more}) if more else use
        for use, more in zip(terms, extra, strict=True)
    )


def auxiliary_method(terms: Terms) -> str:
    """The method that trains an auxiliary between teacher and student; "" if the method needs none."""
    return next((method for use in terms if (method := term(use.name, use.source_sha256).auxiliary)), "")


def formula(terms: Terms) -> str:
    """Write a method as ``1·ce + 0.9·kd(temperature=2)``."""
    parts = []
    for use in terms:
        options = ", ".join(f"{key}={value}" for key, value in use.hyperparameters.items())
        parts.append(f"{use.weight:g}·{use.name}" + (f"({options})" if options else ""))
    return " + ".join(parts)


def sources_of(specs: Iterable[RunSpec | Stage]) -> Iterator[Source]:
    """The code of each plug-in, once."""
    plugins = dict.fromkeys(item for spec in specs for item in spec.plugins.items())
    sources = (SOURCES.get(sha256) or term(name, sha256).source for name, sha256 in plugins)
    return filter(None, sources)


def plugin_folders(specs: Iterable[RunSpec | Stage]) -> dict[str, Path]:
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
