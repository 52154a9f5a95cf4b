"""Expands a grid: the product of its axes, minus `exclude`, plus `include`, as runs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

from pydantic import ValidationError

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import listed, unknown
from kdbench.suite.compatibility import incompatibilities, training_images, unfit
from kdbench.suite.measurements import probe, similarity
from kdbench.suite.methods import Terms, auxiliary_method, formula, reads_teacher
from kdbench.suite.networks import info
from kdbench.suite.schema import SELECTOR_KEYS, DatasetEntry, GridEntry, MethodEntry, Selector
from kdbench.suite.specs import Network, RunSpec, StudentOf
from kdbench.suite.suite import Measurement, Run
from kdbench.suite.teachers import (
    GridPoint,
    TeacherConfig,
    default_teacher,
    make_specs,
    resolve_teacher,
    student_recipe,
)
from kdbench.suite.validator import SuiteValidator
from kdbench.suite.yaml_reader import YamlPath


MOST_RUNS = 20_000
"""As many runs may one command have; the suites of all three papers have 3,290 together."""

EVERYTHING = Selector.model_construct()


def method_name(entry: MethodEntry) -> str:
    """A method's name; a sum of terms without one is called after the terms."""
    if entry.name:
        return entry.name
    return "+".join(entry.terms) if isinstance(entry.terms, dict) else ""


def axes(grid: GridEntry, selector: Selector = EVERYTHING) -> dict[str, int]:
    """The lengths of a grid's axes, by key; ``selector`` replaces the axes that it names."""
    pairs, teachers, students = _networks(grid, selector)
    return {
        "pairs": len(pairs) + len(teachers) * len(students),
        "method": len(selector.method or grid.method),
        "dataset": len(grid.dataset),
        "strategy": len(selector.strategy or grid.strategy),
        "scenario": len(grid.scenario),
    }


def grid_points(grid: GridEntry, selector: Selector = EVERYTHING) -> Iterator[GridPoint]:
    """The product of a grid's axes; the axes that ``selector`` names are replaced by its values."""
    explicit, teachers, students = _networks(grid, selector)
    pairs = [*explicit, *product(teachers, students)]
    methods = selector.method or [method_name(entry) for entry in grid.method]
    data = [entry.spec for entry in grid.dataset if not selector.dataset or entry.name in selector.dataset]
    combinations = product(pairs, data, selector.strategy or grid.strategy, grid.scenario, methods)
    for (teacher, student), spec, strategy, scenario, method in combinations:
        yield GridPoint(teacher, student, method, spec, strategy, scenario)


def _networks(grid: GridEntry, selector: Selector) -> tuple[list[tuple[str, str]], Collection[str], Collection[str]]:
    """The explicit pairs, and the teachers and students whose product follows them."""
    pairs = [(pair.teacher, pair.student) for pair in grid.pairs]
    teachers, students = grid.teacher or ("",), grid.student
    if not (selector.teacher or selector.student):
        return pairs, teachers, students
    all_teachers = dict.fromkeys([*(teacher for teacher, _ in pairs), *(teachers if students else ())])
    all_students = dict.fromkeys([*(student for _, student in pairs), *students])
    return [], selector.teacher or all_teachers, selector.student or all_students


class Grid:
    """Reads the mapping ``raw`` at ``path``. What it does not say is taken from the suite's top."""

    def __init__(self, raw: dict[str, Any], path: YamlPath, validator: SuiteValidator) -> None:
        self.raw = raw
        self.path = path
        self.validator = validator
        own = validator.protocol(raw, path) if "protocol" in raw else validator.top_protocol
        self.protocol, self.base_is_valid, self.protocol_is_valid = own or validator.protocol({}, ())
        self.entry, self.invalid_keys = validator.grid(raw, path)
        for data in self.entry.dataset if self.protocol_is_valid else ():
            if (padding := self.protocol.most_padding(data)) >= data.image_size:
                size = f"as much as the images of {data.name} have pixels, {data.image_size}, or more"
                validator.report(self._place("protocol"), f"crop_padding is {padding}, {size}")
        if "dataset" in raw:
            validator.check_datasets(self.entry.dataset, (*path, "dataset"))
        for index, scenario in enumerate(self.entry.scenario):
            for data in self.entry.dataset if scenario.noise == "classes" else ():
                share, count = scenario.label_noise, data.class_count
                if not round(share * count):
                    message = f"{share} of the {count} classes of {data.name} is not one class: take a larger share"
                    validator.report((*self._place("scenario"), index, "label_noise"), message)
        if "measure" in raw:
            validator.check_measures(self.entry.measure, (*path, "measure"))
        self.terms: ChainMap[str, Terms] = ChainMap({}, validator.methods, self.protocol.terms)
        self.places: dict[str, YamlPath] = {}
        for entry, place in zip(self.entry.method, self._places("method"), strict=True):
            self._read_method(entry, place)

    def runs(self, suite: str, trials: int | None) -> list[Run]:
        """The grid's runs; empty if the suite has a problem. ``trials`` overrides the grid's own number."""
        self._report_missing()
        count = trials or self.entry.trials or self.protocol.trials
        where = () if trials else ("trials",) if self.entry.trials else ("protocol", "trials")
        if self._too_many(count, where):
            return []
        chosen = self._chosen()
        self._report_impossible(chosen)
        if not self.validator.clean:
            return []
        return [
            Run(suite, self.protocol, point.method, point.teacher, point.strategy, spec)
            for point in chosen
            for spec in self._specs(point, count)
        ]

    def _specs(self, point: GridPoint, trials: int) -> list[RunSpec]:
        student, teacher = self.validator.networks.network(point.student), self._teacher(point.teacher)
        return make_specs(point, student, teacher, self.terms[point.method], self.protocol, trials)

    def measurements(self, runs: Iterable[Run]) -> Iterator[Measurement]:
        """The measurements on the networks of ``runs``.

        A student that reads no teacher, or another, is compared with its pair's all the same, where that one is finished.
        """
        measure = self.entry.measure
        for run in runs if measure.probe or measure.similarity else ():
            student, teacher = StudentOf(run=run.spec), self._teacher(run.teacher)
            resolved = teacher and resolve_teacher(teacher, run.spec.dataset, run.strategy, run.protocol)
            for data in measure.probe:
                yield Measurement(run, "student", probe(student, data.spec, measure.probe_protocol))
                if resolved and not resolved.head and resolved.spec.dataset:
                    yield Measurement(run, "teacher", probe(resolved.spec, data.spec, measure.probe_protocol))
            for data in measure.similarity:
                if resolved and (run.spec.head or not resolved.head):
                    shown = None if resolved.head else resolved.spec
                    yield Measurement(run, "student", similarity(student, shown, resolved.view, data.spec))

    def _teacher(self, name: str) -> TeacherConfig | None:
        """A teacher by name; None for none."""
        if not name:
            return None
        return self.validator.teachers.get(name) or default_teacher(self.validator.networks.network(name))

    def _too_many(self, trials: int, said: YamlPath) -> bool:
        """Report a grid that exceeds the limit of runs, by the lengths of its axes; ``said``: the path of the trials."""
        lengths = [axes(self.entry), *(axes(self.entry, selector) for selector in self.entry.include)]
        self.validator.runs += trials * sum(prod(each.values()) for each in lengths)
        if self.validator.runs <= MOST_RUNS:
            return False
        most = max(range(len(lengths)), key=lambda index: prod(lengths[index].values()))
        counts = {**lengths[most], "trials": trials}
        factors = [f"{count:,} {_PLURALS[axis]}" for axis, count in counts.items() if count > 1]
        largest = max(counts, key=lambda axis: counts[axis])
        keys: dict[str, YamlPath] = {"pairs": ("pairs",) if self.entry.pairs else ("student",), "trials": said}
        self.validator.report(
            self._places("include")[most - 1] if most else self._place(*keys.get(largest, (largest,))),
            f"{' × '.join(factors)}: {self.validator.runs:,} runs up to here, and a command takes {MOST_RUNS:,} at most. "
            "Make fewer, or spread them over several suites and run these one by one",
        )
        return True

    def _place(self, *keys: str | int) -> YamlPath:
        """The path of a key: in the grid, else at the suite's top, else the grid's own path."""
        places: list[YamlPath] = [(*self.path, *keys), keys]
        return next((place for place in places if keys and place in self.validator.document.lines), self.path)

    def _report_missing(self) -> None:
        """Report missing required keys, without the errors that follow from them."""
        missing = {key: f"'{key}' is missing" for key in ("dataset", "method") if not getattr(self.entry, key)}
        if not self.entry.pairs and not self.entry.student and "pairs" not in self.invalid_keys:
            missing["student"] = "'student' is missing (or give 'pairs' of teacher and student)"
        for key in missing.keys() - self.invalid_keys.keys():
            self.validator.report(self.path, missing[key])
            self.invalid_keys[key] = set()

    def _places(self, key: str) -> list[YamlPath]:
        """The paths of the valid items of a list."""
        written = self.raw.get(key)
        count = len(written) if isinstance(written, list) else 1
        right = [(*self.path, key, index) for index in range(count) if index not in self.invalid_keys.get(key, ())]
        return right if getattr(self.entry, key) else []

    def _read_method(self, entry: MethodEntry, place: YamlPath) -> None:
        name = method_name(entry)
        self.places.setdefault(name, place)
        if "terms" in entry.model_fields_set:
            terms = self.validator.terms(entry.terms, (*place, "terms"))
        elif name in self.terms:
            terms = self.terms[name]
        else:
            terms = ()
            known = self.validator.among(each for each in self.terms if self.terms[each] or each in self.terms.parents)
            message = unknown("method", name, known, "methods")
            self.validator.report(place, message if name else "needs a 'name', or 'terms' such as {ce: 1, kd: 0.9}")
        self.terms[name] = terms
        self._check_meaning(name, place)

    def _check_meaning(self, name: str, place: YamlPath) -> None:
        """Two methods of one name would share a place in the tables."""
        terms = self.terms[name]
        before = self.validator.method_definitions.setdefault((self.protocol.name, name), terms) if terms else terms
        if before != terms:
            message = f"'{name}' is {formula(terms)} here but {formula(before)} above: give one another name"
            self.validator.report(place, message)

    def _chosen(self) -> dict[GridPoint, YamlPath]:
        """The grid points that are left after exclusion, and those included, with the place to which a problem belongs."""
        grid = self.entry
        if not grid.dataset:  # the methods are to be checked against the pairs all the same
            grid = grid.model_copy(update={"dataset": (DatasetEntry(name=next(iter(datasets()))),)})
        everything = list(dict.fromkeys(grid_points(grid)))
        by_value: dict[tuple[str, str], set[int]] = {}
        for index, point in enumerate(everything if self.entry.exclude else ()):
            for key in SELECTOR_KEYS:
                value = point.dataset.name if key == "dataset" else getattr(point, key)
                by_value.setdefault((key, value), set()).add(index)
        excluded: set[int] = set()
        for selector, place in zip(self.entry.exclude, self._places("exclude"), strict=True):
            matches = set(range(len(everything)))
            for key in SELECTOR_KEYS:
                if values := getattr(selector, key):
                    matches &= set().union(*(by_value.get((key, value), ()) for value in values))
            if self._names_exist(selector, place) and not matches and not self.invalid_keys:
                self.validator.report(place, "matches no run of this grid")
            excluded |= matches
        self._check_methods_of_invalid("exclude")
        self._check_methods_of_invalid("include")
        chosen = {point: self.places[point.method] for index, point in enumerate(everything) if index not in excluded}
        for selector, place in zip(self.entry.include, self._places("include"), strict=True):
            if self._names_exist(selector, place, free=("teacher", "student", "strategy")):
                for name in selector.method:
                    self._check_meaning(name, place)
                chosen |= {point: place for point in grid_points(grid, selector) if point not in chosen}
        return chosen

    def _check_methods_of_invalid(self, key: str) -> None:
        """Report the unknown methods of selectors that are left out for another mistake."""
        value = self.raw.get(key)
        selectors = value if isinstance(value, list) else [value]
        for index in self.invalid_keys.get(key, ()):
            selector = selectors[index]
            methods = selector.get("method") if isinstance(selector, dict) else None
            for position, name in enumerate(methods if isinstance(methods, list) else [methods]):
                if isinstance(name, str) and name not in self.terms:
                    message = unknown("method", name, self.validator.among(self.terms), "methods")
                    self.validator.report((*self.path, key, index, "method", position), message)

    def _names_exist(self, selector: Selector, place: YamlPath, free: tuple[str, ...] = ()) -> bool:
        """Whether what a selector names is in the grid; axes in ``free`` may name anything, methods any known one."""
        entry, good = self.entry, True
        there: dict[str, list[str]] = {
            "teacher": [*entry.teacher, *(pair.teacher for pair in entry.pairs)],
            "student": [*entry.student, *(pair.student for pair in entry.pairs)],
            "method": list(self.terms if free or "method" in self.invalid_keys else self.places),
            "dataset": [data.name for data in entry.dataset],
            "strategy": list(entry.strategy),
        }
        for key in SELECTOR_KEYS:
            incomplete = self.invalid_keys.keys() & ({key, "pairs"} if key in ("teacher", "student") else {key})
            if key in free or (incomplete and key != "method"):
                continue
            for index, value in enumerate(getattr(selector, key)):
                if value not in there[key]:
                    good = False
                    message = f"the {key} '{value}' is not in this grid, which has {listed(there[key])}"
                    if key == "method":
                        message = unknown("method", value, self.validator.among(there[key]), "methods")
                    self.validator.report((*place, key, index), message)
        return good

    def _report_impossible(self, chosen: dict[GridPoint, YamlPath]) -> None:
        """Report what cannot be trained: one problem for each place and reason, however many grid points it concerns."""
        reasons: dict[tuple[YamlPath, str], list[str]] = {}
        for point, place in chosen.items():
            for where, reason, detail in self._impossible(point, place):
                details = reasons.setdefault((where, reason), [])
                details += [detail] if detail not in details else []
        for (where, reason), details in reasons.items():
            more = f" (and {len(details) - 1} more like this)" if len(details) > 1 else ""
            self.validator.report(where, f"{reason}{details[0]}{more}")

    def _impossible(self, point: GridPoint, place: YamlPath) -> Iterator[tuple[YamlPath, str, str]]:
        """Why a point cannot be trained: place, reason, and the detail that differs from pair to pair."""
        terms, teacher = self.terms[point.method], self._teacher(point.teacher)
        named, data = f"method '{point.method}' ", point.dataset
        for network in self._pair(point, teacher):
            if reason := self._unfit(point, network):
                yield place, "", reason
        if not reads_teacher(terms):
            alone = TeacherConfig(self.validator.networks.network(point.student), "random")
            for reason in self._reasons(point, alone, terms):
                yield place, f"{named}cannot train {point.student}: {reason}", ""
            return
        if teacher is None:
            if not self.invalid_keys.keys() & {"teacher", "pairs"}:
                yield place, f"{named}({formula(terms)}) needs a teacher, and the grid names none", ""
            return
        for reason in self._reasons(point, teacher, terms):
            detail = f"{point.student} with {point.teacher}: {reason}. Exclude the pair or change the method."
            yield place, f"{named}cannot train ", detail
        for reason in self._unfilled(point, terms):
            yield place, f"{named}cannot train ", reason
        if teacher.source == "simclr" and data.facts.streamed:
            yield place, f"SimCLR needs its images in memory, and those of {data.name} stay files", ""
        if teacher.may_have_seen(data):
            message = (
                f"{point.teacher} was trained elsewhere, perhaps on the images that val_split holds out: use a teacher that "
                "is trained here, or leave val_split out"
            )
            yield place, message, ""
        strategy = self._place("strategy")
        if lacking := teacher.lacks_classifier(data, point.strategy):
            yield place if strategy == self.path else strategy, f"{point.teacher} {lacking}", ""
        part = next((use.name for use in terms if term(use.name).part is not None), None)
        if part and point.strategy == "simultaneous":
            message = f"{part} first trains a part on the finished teacher: use strategy pretrained or sequential"
            yield place, f"{named}cannot be used with strategy simultaneous: ", message
        if point.strategy != "pretrained" and self.protocol.node_embedding is None and self.base_is_valid:
            message = (
                f"strategy '{point.strategy}' trains new layers on a frozen backbone, but protocol "
                f"'{self.protocol.name}' has none: set protocol: {{base: …, node_embedding: 256}}, or use 'ega'"
            )
            yield strategy, message, ""

    def _pair(self, point: GridPoint, teacher: TeacherConfig | None) -> Iterator[Network]:
        """The networks of a point that must tell its classes apart."""
        yield self.validator.networks.network(point.student)
        if teacher and point.strategy == "pretrained":
            yield teacher.network

    def _unfit(self, point: GridPoint, network: Network) -> str:
        data = point.dataset
        seen = self.protocol.recipe(str(network), data).size if self.protocol_is_valid else None
        return unfit(network, data, seen or data.image_size)

    def _unfilled(self, point: GridPoint, terms: Terms) -> Iterator[str]:
        """Report terms that need full batches when the training images fill none."""
        data = point.dataset
        for use in terms if self.protocol_is_valid else ():
            least = int(term(use.name).full_batches)
            images, batch = training_images(data, point.scenario), self.protocol.recipe(point.student, data).batch
            if not least or least <= batch <= images:
                continue
            what = (
                f"{point.student} on {data.name}: {use.name} learns from full batches only, of {least:,} images or more"
            )
            if images < least:
                yield f"{what}, and there are {images:,} training images: take more of them, or leave it out"
                continue
            change = f"batch: {min(max(batch, least), images)}"
            if "batch" in self.protocol.datasets.get(data.name, {}):
                change = f"datasets: {{{data.name}: {{{change}}}}}"
            why = f"and {images:,} training images fill none of {batch:,}" if batch > images else f"not of {batch:,}"
            yield f"{what}, {why}. Another would do: protocol: {{base: {self.protocol.base}, {change}}}"

    def _reasons(self, point: GridPoint, teacher: TeacherConfig, terms: Terms) -> list[str]:
        """Why a method cannot train a pair, including its auxiliary network, if it has one."""
        method = auxiliary_method(terms)
        node = self.protocol.node_embedding
        own = teacher.run.recipe.node_embedding if teacher.run else None
        nodes = (node, own if point.strategy == "pretrained" else node)
        student = self.validator.networks.network(point.student)
        try:
            recipe = student_recipe(point, student, self.protocol)
        except ValidationError:  # told where the protocol is read
            return []
        images = (recipe.size or point.dataset.image_size, point.scenario.fraction)
        if not method:
            return incompatibilities(student, teacher.network, terms, nodes, *images)
        wider, known = info(student).auxiliary, self.protocol.terms.get(method)
        if not wider:
            return [f"it needs a network of twice the student's channels, and no doubled {point.student} is known"]
        if known is None:
            return [f"it trains {wider} first, by the method '{method}', which protocol '{self.protocol.name}' lacks"]
        return [
            *incompatibilities(student, wider, terms, (node, node), *images),
            *incompatibilities(wider, teacher.network, known, nodes, *images),
        ]


_PLURALS = {
    "pairs": "pairs of networks",
    "method": "methods",
    "dataset": "data sets",
    "strategy": "strategies",
    "scenario": "scenarios",
    "trials": "trials",
}
