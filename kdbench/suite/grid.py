"""Expands a grid: the product of its axes, minus `exclude`, plus `include`, as runs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import listed, unknown
from kdbench.suite.collector import Collector, Top
from kdbench.suite.compatibility import infeasible, training_images
from kdbench.suite.methods import Terms, auxiliary_method, formula, reads_teacher
from kdbench.suite.schema import SELECTOR_KEYS, DatasetEntry, GridEntry, MethodEntry, Selector
from kdbench.suite.specs import RunSpec
from kdbench.suite.suite import Cell, Measurement, Run, make_spec, measurements_of, repeated
from kdbench.suite.teachers import NamedTeacher, by_network
from kdbench.suite.yaml_reader import Path_


MOST_RUNS = 20_000
"""As many runs may one command have; the suites of all three papers have 3,290 together."""


def method_name(entry: MethodEntry) -> str:
    """A method's name; a sum of terms without one is called after the terms."""
    if entry.name:
        return entry.name
    return "+".join(entry.terms) if isinstance(entry.terms, dict) else ""


def axes(grid: GridEntry, selector: Selector | None = None) -> dict[str, int]:
    """How long a grid's axes are, by key; the axes that ``selector`` names have its values."""
    selector = selector or Selector.model_construct()
    if selector.teacher or selector.student:
        pairs = len(selector.teacher or _teachers(grid)) * len(selector.student or _students(grid))
    else:
        pairs = len(grid.pairs) + len(grid.teacher or ("",)) * len(grid.student)
    return {
        "pairs": pairs,
        "method": len(selector.method or grid.method),
        "dataset": len(grid.dataset),
        "strategy": len(selector.strategy or grid.strategy),
        "scenario": len(grid.scenario),
    }


def cells(grid: GridEntry, selector: Selector | None = None) -> Iterator[Cell]:
    """The product of a grid's axes; the axes that ``selector`` names are replaced by its values."""
    selector = selector or Selector.model_construct()
    methods = selector.method or [method_name(entry) for entry in grid.method]
    data = [entry.spec for entry in grid.dataset if not selector.dataset or entry.name in selector.dataset]
    combinations = product(_pairs(grid, selector), data, selector.strategy or grid.strategy, grid.scenario, methods)
    for (teacher, student), dataset, strategy, scenario, method in combinations:
        yield Cell(teacher, student, method, dataset, strategy, scenario)


def _pairs(grid: GridEntry, selector: Selector) -> Iterable[tuple[str, str]]:
    if selector.teacher or selector.student:
        return product(selector.teacher or _teachers(grid), selector.student or _students(grid))
    return [*((pair.teacher, pair.student) for pair in grid.pairs), *product(grid.teacher or ("",), grid.student)]


def _teachers(grid: GridEntry) -> dict[str, None]:
    return dict.fromkeys([*(pair.teacher for pair in grid.pairs), *((grid.teacher or ("",)) if grid.student else ())])


def _students(grid: GridEntry) -> dict[str, None]:
    return dict.fromkeys([*(pair.student for pair in grid.pairs), *grid.student])


class Matches:
    """Which of many cells a selector means, told from the values on their axes."""

    def __init__(self, among: list[Cell]) -> None:
        self.count = len(among)
        self.by_value: dict[tuple[str, str], set[int]] = {}
        for index, cell in enumerate(among):
            for key in SELECTOR_KEYS:
                value = cell.dataset.name if key == "dataset" else getattr(cell, key)
                self.by_value.setdefault((key, value), set()).add(index)

    def of(self, selector: Selector) -> set[int]:
        """The places of the cells that are on every axis that the selector names."""
        found = set(range(self.count))
        for key in SELECTOR_KEYS:
            if values := getattr(selector, key):
                found &= set().union(*(self.by_value.get((key, value), ()) for value in values))
        return found


class Grid:
    """Reads the mapping ``raw`` at ``path``. What it does not say is taken from the suite's ``top``."""

    def __init__(
        self, raw: dict[str, Any], path: Path_, top: Top, methods: dict[str, Terms], collector: Collector
    ) -> None:
        self.raw = raw
        self.path = path
        self.collector = collector
        own = collector.protocol(raw, path) if "protocol" in raw else top.protocol
        self.protocol, self.certain, self.sound = own or collector.protocol({}, ())
        self.entry, self.wrong = top.complete(*collector.validate(GridEntry, raw, path), raw)
        for data in self.entry.dataset if self.sound else ():
            if (padding := self.protocol.settings.most_padding(data.name)) >= data.side:
                message = (
                    f"crop_padding is {padding}, as much as the images of {data.name} have pixels, {data.side}, or more"
                )
                collector.report(self._place("protocol"), message)
        if "dataset" in raw:
            collector.check_datasets(self.entry.dataset, (*path, "dataset"))
        if "measure" in raw:
            collector.check_measures(self.entry.measure, (*path, "measure"))
        self.terms: ChainMap[str, Terms] = ChainMap({}, methods, self.protocol.methods)
        self.places: dict[str, Path_] = {}
        for entry, place in zip(self.entry.method, self._places("method"), strict=True):
            self._read_method(entry, place)

    def runs(self, suite: str, trials: int | None) -> list[Run]:
        """The grid's runs; none where something is wrong. ``trials`` overrides what the grid says."""
        self._report_missing()
        count = trials or self.entry.trials or self.protocol.settings.trials
        where = () if trials else ("trials",) if self.entry.trials else ("protocol", "trials")
        if self._too_many(count, where):
            return []
        chosen = self._chosen()
        self._report_impossible(chosen)
        if not self.collector.clean:
            return []
        return [
            Run(suite, self.protocol, cell.method, cell.teacher, cell.strategy, spec)
            for cell in chosen
            for spec in self._specs(cell, count)
        ]

    def measurements(self, runs: Sequence[Run]) -> list[Measurement]:
        """What the grid has measured on its ``runs``."""
        found: list[Measurement] = []
        for run in runs:
            found += measurements_of(run, self._named(run.teacher), self.entry.measure)
        return found

    def _specs(self, cell: Cell, trials: int) -> list[RunSpec]:
        kind, terms = self._teacher(cell), self.terms[cell.method]
        if auxiliary_method(terms):  # whose trial is the run's
            return [make_spec(cell, kind, terms, self.protocol, trial) for trial in range(trials)]
        return repeated(make_spec(cell, kind, terms, self.protocol), trials)

    def _teacher(self, cell: Cell) -> NamedTeacher | None:
        """What the cell's teacher is; None where it has none."""
        return self._named(cell.teacher)

    def _named(self, teacher: str) -> NamedTeacher | None:
        return self.collector.teachers.get(teacher) or (by_network(teacher) if teacher else None)

    def _too_many(self, trials: int, said: Path_) -> bool:
        """Report more runs than a command may have, told from the lengths of the axes; ``said``: where the trials stand."""
        lengths = [axes(self.entry), *(axes(self.entry, selector) for selector in self.entry.include)]
        self.collector.runs += trials * sum(prod(each.values()) for each in lengths)
        if self.collector.runs <= MOST_RUNS:
            return False
        most = max(range(len(lengths)), key=lambda index: prod(lengths[index].values()))
        counts = {**lengths[most], "trials": trials}
        factors = [f"{count:,} {_PLURALS[axis]}" for axis, count in counts.items() if count > 1]
        largest = max(counts, key=lambda axis: counts[axis])
        keys: dict[str, Path_] = {"pairs": ("pairs",) if self.entry.pairs else ("student",), "trials": said}
        self.collector.report(
            self._places("include")[most - 1] if most else self._place(*keys.get(largest, (largest,))),
            f"{' × '.join(factors)}: {self.collector.runs:,} runs up to here, and a command takes {MOST_RUNS:,} at most. "
            "Make fewer, or spread them over several suites and run these one by one",
        )
        return True

    def _place(self, *keys: str | int) -> Path_:
        """Where a key stands: in the grid, or at the suite's top; the grid itself where it stands in neither."""
        places: list[Path_] = [(*self.path, *keys), keys]
        return next((place for place in places if keys and place in self.collector.document.lines), self.path)

    def _report_missing(self) -> None:
        """Report the keys without which there is no run; what follows from that is not reported again."""
        missing = {key: f"'{key}' is missing" for key in ("dataset", "method") if not getattr(self.entry, key)}
        if not self.entry.pairs and not self.entry.student and "pairs" not in self.wrong:
            missing["student"] = "'student' is missing (or give 'pairs' of teacher and student)"
        for key in missing.keys() - self.wrong.keys():
            self.collector.report(self.path, missing[key])
            self.wrong[key] = set()

    def _places(self, key: str) -> list[Path_]:
        """Where the right items of a list stand in the file."""
        written = self.raw.get(key)
        count = len(written) if isinstance(written, list) else 1
        right = [(*self.path, key, index) for index in range(count) if index not in self.wrong.get(key, ())]
        return right if getattr(self.entry, key) else []

    def _read_method(self, entry: MethodEntry, place: Path_) -> None:
        name = method_name(entry)
        self.places.setdefault(name, place)
        if "terms" in entry.model_fields_set:
            terms = self.collector.terms(entry.terms, (*place, "terms"))
        elif name in self.terms:
            terms = self.terms[name]
        else:
            terms = ()
            known = self.collector.among(each for each in self.terms if self.terms[each] or each in self.terms.parents)
            message = unknown("method", name, known, "methods")
            self.collector.report(place, message if name else "needs a 'name', or 'terms' such as {ce: 1, kd: 0.9}")
        self.terms[name] = terms
        self._check_meaning(name, place)

    def _check_meaning(self, name: str, place: Path_) -> None:
        """Two methods of one name would share a place in the tables."""
        terms = self.terms[name]
        before = self.collector.meanings.setdefault((self.protocol.name, name), terms) if terms else terms
        if before != terms:
            message = f"'{name}' is {formula(terms)} here but {formula(before)} above: give one another name"
            self.collector.report(place, message)

    def _chosen(self) -> dict[Cell, Path_]:
        """The cells that are left after exclusion, and those included, with the place to which a problem belongs."""
        grid = self.entry
        if not grid.dataset:  # the methods are to be checked against the pairs all the same
            grid = grid.model_copy(update={"dataset": (DatasetEntry(name=next(iter(datasets()))),)})
        everything = list(dict.fromkeys(cells(grid)))
        matches, excluded = Matches(everything if self.entry.exclude else []), set[int]()
        for selector, place in zip(self.entry.exclude, self._places("exclude"), strict=True):
            found = matches.of(selector)
            if self._names_exist(selector, place) and not found and not self.wrong:
                self.collector.report(place, "matches no run of this grid")
            excluded |= found
        chosen = {cell: self.places[cell.method] for index, cell in enumerate(everything) if index not in excluded}
        for selector, place in zip(self.entry.include, self._places("include"), strict=True):
            if self._names_exist(selector, place, free=("teacher", "student", "strategy")):
                for name in selector.method:
                    self._check_meaning(name, place)
                chosen |= {cell: place for cell in cells(grid, selector) if cell not in chosen}
        return chosen

    def _names_exist(self, selector: Selector, place: Path_, free: tuple[str, ...] = ()) -> bool:
        """Whether what a selector names is in the grid; axes in ``free`` may name anything, methods any known one."""
        entry, good = self.entry, True
        there: dict[str, list[str]] = {
            "teacher": [*entry.teacher, *(pair.teacher for pair in entry.pairs)],
            "student": [*entry.student, *(pair.student for pair in entry.pairs)],
            "method": list(self.terms if free or "method" in self.wrong else self.places),
            "dataset": [dataset.name for dataset in entry.dataset],
            "strategy": list(entry.strategy),
        }
        for key in SELECTOR_KEYS:
            incomplete = self.wrong.keys() & ({key, "pairs"} if key in ("teacher", "student") else {key})
            if key in free or (incomplete and key != "method"):
                continue
            for index, value in enumerate(getattr(selector, key)):
                if value not in there[key]:
                    good = False
                    message = f"the {key} '{value}' is not in this grid, which has {listed(there[key])}"
                    if key == "method":
                        message = unknown("method", value, self.collector.among(there[key]), "methods")
                    self.collector.report((*place, key, index), message)
        return good

    def _report_impossible(self, chosen: dict[Cell, Path_]) -> None:
        """Report what cannot be trained: one problem for each place and reason, however many cells it concerns."""
        reasons: dict[tuple[Path_, str], list[str]] = {}
        for cell, place in chosen.items():
            for where, reason, detail in self._impossible(cell, place):
                found = reasons.setdefault((where, reason), [])
                found += [detail] if detail not in found else []
        for (where, reason), details in reasons.items():
            more = f" (and {len(details) - 1} more like this)" if len(details) > 1 else ""
            self.collector.report(where, f"{reason}{details[0]}{more}")

    def _impossible(self, cell: Cell, place: Path_) -> list[tuple[Path_, str, str]]:
        """Why a cell cannot be trained: place, reason, and the detail that differs from pair to pair."""
        terms = self.terms[cell.method]
        if not reads_teacher(terms):
            return []
        named = f"method '{cell.method}' "
        teacher = self._teacher(cell)
        if teacher is None:
            known = not self.wrong.keys() & {"teacher", "pairs"}
            return [(place, f"{named}({formula(terms)}) needs a teacher, and the grid names none", "")] if known else []
        found = [
            (
                place,
                f"{named}cannot train ",
                f"{cell.student} with {cell.teacher}: {reason}. Exclude the pair or change the method.",
            )
            for reason in self._reasons(cell, teacher.network, terms)
        ]
        found += [(place, f"{named}cannot train ", reason) for reason in self._unfilled(cell, terms)]
        if not teacher.trains_on(cell.dataset.name):
            found.append((place, f"SimCLR needs its images in memory, and those of {cell.dataset.name} stay files", ""))
        if teacher.may_know(cell.dataset):
            message = (
                f"{cell.teacher} was trained elsewhere, perhaps on the images that val_split holds out: use a teacher that "
                "is trained here, or leave val_split out"
            )
            found.append((place, message, ""))
        if lacking := teacher.lacks_classifier(cell.dataset, cell.strategy):
            where = self._place("strategy")
            where = where if where != self.path else place
            found.append((where, f"{cell.teacher} {lacking}", ""))
        unfinished = [use.name for use in terms if term(use.name).part is not None and cell.strategy == "simultaneous"]
        if unfinished:
            message = (
                f"{unfinished[0]} first trains a part on the finished teacher: use strategy pretrained or sequential"
            )
            found.append((place, f"{named}cannot be used with strategy simultaneous: ", message))
        if cell.strategy != "pretrained" and self.protocol.settings.node_embedding is None and self.certain:
            where = self._place("strategy")
            message = (
                f"strategy '{cell.strategy}' trains new layers on a frozen backbone, but protocol "
                f"'{self.protocol.name}' has none: set protocol: {{base: …, node_embedding: 256}}, or use 'ega'"
            )
            found.append((where, message, ""))
        return found

    def _unfilled(self, cell: Cell, terms: Terms) -> Iterator[str]:
        """Terms that learn from full batches only, where the training images fill none."""
        settings, data = self.protocol.settings, cell.dataset
        for use in terms if self.sound else ():
            least = int(term(use.name).full_batches)
            images, batch = training_images(data, cell.scenario), settings.recipe(cell.student, data.name).batch
            if not least or least <= batch <= images:
                continue
            what = (
                f"{cell.student} on {data.name}: {use.name} learns from full batches only, of {least:,} images or more"
            )
            if images < least:
                yield f"{what}, and there are {images:,} training images: take more of them, or leave it out"
                continue
            change = f"batch: {min(max(batch, least), images)}"
            if "batch" in settings.datasets.get(data.name, {}):
                change = f"datasets: {{{data.name}: {{{change}}}}}"
            why = f"and {images:,} training images fill none of {batch:,}" if batch > images else f"not of {batch:,}"
            yield f"{what}, {why}. Another would do: protocol: {{base: {self.protocol.base}, {change}}}"

    def _reasons(self, cell: Cell, teacher: str, terms: Terms) -> list[str]:
        """What makes a method impossible for a pair, with the auxiliary between the two where the method has one."""
        method = auxiliary_method(terms)
        node = self.protocol.settings.node_embedding
        nodes = (node, None if cell.strategy == "pretrained" else node)
        try:
            recipe = self.protocol.settings.recipe(cell.student, cell.dataset.name)
        except ValidationError:  # told where the protocol is read
            return []
        images = (recipe.size or cell.dataset.side, cell.scenario.fraction)
        if not method:
            return infeasible(cell.student, teacher, terms, nodes, *images)
        wider, known = network(cell.student).auxiliary, self.protocol.methods.get(method)
        if not wider:
            return [f"it needs a network of twice the student's channels, and no doubled {cell.student} is known"]
        if known is None:
            return [f"it trains {wider} first, by the method '{method}', which protocol '{self.protocol.name}' lacks"]
        return [
            *infeasible(cell.student, wider, terms, (node, node), *images),
            *infeasible(wider, teacher, known, nodes, *images),
        ]


_PLURALS = {
    "pairs": "pairs of networks",
    "method": "methods",
    "dataset": "data sets",
    "strategy": "strategies",
    "scenario": "scenarios",
    "trials": "trials",
}
