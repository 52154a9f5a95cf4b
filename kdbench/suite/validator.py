"""Reads parts of a suite. What is wrong is collected and left out, so that all the rest is checked, too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network as catalogue_network
from kdbench.catalogue.networks import networks
from kdbench.catalogue.text import normalise
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import PRINTED, BadInput, BadSuite, Problem
from kdbench.suite.compatibility import subset_errors
from kdbench.suite.data_specs import ImagesSpec
from kdbench.suite.methods import Terms, parse_terms
from kdbench.suite.networks import SuiteNetworks, network_spec, short_names
from kdbench.suite.plain_errors import problems_of, shorten
from kdbench.suite.protocol import Protocol, bundled_protocol, derived_protocol, fallback_protocol
from kdbench.suite.schema import (
    DatasetEntry,
    GridEntry,
    ImagesEntry,
    MeasureEntry,
    NetworkEntry,
    Schema,
    Shared,
    SuiteHead,
    TeacherEntry,
    keys_of,
)
from kdbench.suite.specs import Network, NetworkSpec
from kdbench.suite.teachers import TeacherConfig, default_teacher, student_teacher, teacher_config
from kdbench.suite.yaml_reader import Document, YamlPath, show_path


AnySchema = TypeVar("AnySchema", bound=Schema)
InvalidKeys = dict[str, set[Any]]
"""The keys of which something was left out, and which items of their lists."""


class SuiteValidator:
    """Collects the problems of one document.

    ``head``, ``methods`` and ``teachers``: what the top of the suite says for all grids; ``method_definitions``: the terms
    of each method by protocol and name; ``runs``: how many runs the grids describe so far; ``searches``: how often the
    nearest name was looked for.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.teachers: dict[str, TeacherConfig] = {}
        self.networks = SuiteNetworks()
        self.datasets: dict[str, ImagesSpec] = {}
        self.image_sources: dict[str, ImageSource] = {}
        self.problems: list[Problem] = []
        self.runs = 0
        self.searches = 0
        self.method_definitions: dict[tuple[str, str], Terms] = {}
        data = document.data
        if not isinstance(data, dict):
            self.report((), "a suite is a mapping with the keys 'protocol', 'dataset' and 'grid'")
            raise BadSuite(self.all_problems())
        self.data = data
        self._name_datasets(data.get("datasets"))
        self.head, self.invalid_keys = self.validate(SuiteHead, data, ())
        self._name_networks(self.head.networks)
        self.top_protocol = self.protocol(data, ()) if "protocol" in data else None
        self._name_teachers(self.head.teachers)
        self.check_datasets(self.head.dataset, ("dataset",))
        self.check_measures(self.head.measure, ("measure",))
        methods = data.get("methods")
        items = methods.items() if isinstance(methods, dict) else ()
        self.methods = {name: self.terms(value, ("methods", name)) for name, value in items}

    def all_problems(self) -> list[Problem]:
        """Everything that has been found so far, each once."""
        return list(dict.fromkeys(self.document.all_problems(self.problems)))

    @property
    def clean(self) -> bool:
        """Whether nothing has been found so far."""
        return not (self.problems or self.document.problems)

    def report(self, path: YamlPath, message: str) -> None:
        """Note a problem at a place of the document."""
        self.problems.append(self.document.problem(path, message))

    def among(self, names: Iterable[str]) -> Iterable[str]:
        """The ``names`` of which the nearest to a wrong one is looked for; none once more was looked for than is printed."""
        self.searches += 1
        return names if self.searches <= PRINTED else ()

    @property
    def _context(self) -> dict[str, Any]:
        own = {"teachers": self.teachers, "networks": self.networks, "datasets": self.datasets}
        return {**own, "among": self.among}

    def validate(self, schema: type[AnySchema], value: dict[str, Any], path: YamlPath) -> tuple[AnySchema, InvalidKeys]:
        """Validate a mapping: what is right of it, and what was left out."""
        context = self._context
        try:
            return schema.model_validate(value, context=context), {}
        except ValidationError as error:
            details = error.errors()
            self.problems += problems_of(error, self.document, path, keys_of(schema))
        wrong: InvalidKeys = {}
        for detail in details:
            key, *rest = detail["loc"]
            wrong.setdefault(str(key), set()).update(rest[:1])
        whole = {str(detail["loc"][0]) for detail in details if len(detail["loc"]) == 1}
        return schema.model_validate(_without(value, wrong, whole), context=context), wrong

    def grid(self, raw: dict[str, Any], path: YamlPath) -> tuple[GridEntry, InvalidKeys]:
        """Validate a grid: with what it leaves to the suite's top, and what was left out of either."""
        entry, wrong = self.validate(GridEntry, raw, path)
        keys = [key for key in Shared.model_fields if key in self.data and key not in raw]
        inherited = {key: getattr(self.head, key) for key in keys}
        return entry.model_copy(update=inherited), wrong | {
            key: self.invalid_keys[key] for key in keys if key in self.invalid_keys
        }

    def protocol(self, owner: dict[str, Any], path: YamlPath) -> tuple[Protocol, bool, bool]:
        """The protocol of a suite or grid, as far as it is right, whether its base and new layers are, and whether all is."""
        value, here = owner.get("protocol"), (*path, "protocol")
        if isinstance(value, dict):
            protocol, problems = derived_protocol(value, self.document, here, self._context)
            self.problems += problems
            doubtful = (show_path(here), show_path((*here, "base")), show_path((*here, "node_embedding")))
            return protocol, not any(problem.path in doubtful for problem in problems), not problems
        if isinstance(value, str):
            try:
                return bundled_protocol(value), True, True
            except BadInput as error:
                self.report(here, str(error))
                return fallback_protocol(value), False, False
        what = "is missing" if value is None else f"must be a name or a mapping, not {shorten(value)}"
        self.report(here, f"'protocol' {what}: name one (kdbench list protocols), or {{base: NAME, …changes}}")
        return fallback_protocol(""), False, False

    def terms(self, value: Any, path: YamlPath) -> Terms:
        """Parse a weighted sum of terms; empty if it is wrong."""
        return parse_terms(value, lambda inner, message: self.report((*path, *inner), message))

    def _name_datasets(self, given: Any) -> None:
        """Read the suite's own images. The use of a wrong set is not a problem, too."""
        if given:
            from kdbench.datafiles.own_images import facts_of  # most suites have none
        for name, value in given.items() if isinstance(given, dict) else ():
            here: YamlPath = ("datasets", name)
            self.datasets[name] = _NO_IMAGES
            try:
                if not isinstance(name, str) or not name.strip() or not name.isprintable():
                    raise BadInput("a data set needs a name of one line")
                if _is_known(dataset, name):
                    raise BadInput(f"'{name}' is the name of a data set of kdbench: give yours another")
                source = ImagesEntry.model_validate(value).source(self.document.folder)
                facts = self.document.images(source) or facts_of(source)
                self.datasets[name] = ImagesSpec(**facts)
                if facts["streamed"] or facts["sha256"] not in self.image_sources:  # from files, arrays are had, too
                    self.image_sources[facts["sha256"]] = source
            except ValidationError as error:
                self.problems += problems_of(error, self.document, here, {"": ImagesEntry.model_fields})
            except BadInput as error:
                self.report(here, str(error))

    def _name_networks(self, given: dict[str, Any]) -> None:
        """Take note of the suite's own networks, and measure them. The use of a wrong one is not a problem, too."""
        specs: dict[str, NetworkSpec] = {}
        for name, value in given.items():
            here: YamlPath = ("networks", name)
            self.networks.own[name] = next(iter(networks()))
            try:
                if not name.strip() or ":" in name:
                    raise BadInput("a network needs a name without a colon")
                if _is_known(catalogue_network, name) or normalise(name) in short_names():
                    raise BadInput(f"'{name}' is the name of a network of kdbench: give yours another")
                entry = NetworkEntry.model_validate({"build": value} if isinstance(value, str) else value)
                if not _is_json(entry.arguments):
                    raise BadInput("'arguments' must hold numbers, text, lists and mappings alone")
                specs[name] = network_spec(name, entry.build, **entry.model_dump(exclude={"build"}))
            except ValidationError as error:
                self.problems += problems_of(error, self.document, here, {"": NetworkEntry.model_fields})
            except BadInput as error:
                self.report(here, str(error))
        for name, message in self.networks.take(specs).items():
            key, _, text = message.partition(": ")
            inner = key in ("maps", "embedding")
            self.report(("networks", name, key) if inner else ("networks", name), text if inner else message)
        self.networks.prepare(dict.fromkeys(_builders(self.data.get("grid"))))

    def _name_teachers(self, given: dict[str, Any]) -> None:
        """Take note of what the suite's own names of teachers stand for."""
        for name, value in given.items():
            here: YamlPath = ("teachers", name)
            if not name.strip():
                self.report(here, "a teacher needs a name")
            elif _is_known(catalogue_network, name) or name in self.networks.own:
                self.report(here, f"'{name}' is the name of a network: give the teacher another")
            elif not isinstance(value, dict):
                self.report(here, "must be a mapping (network: …, weights: … or pretraining: …)")
            else:
                self._name_teacher(name, value, here)

    def _name_teacher(self, name: str, value: dict[str, Any], here: YamlPath) -> None:
        network: Network = next(iter(networks()))
        try:
            entry = TeacherEntry.model_validate(value, context=self._context)
            if entry.network is None:
                self.teachers[name] = student_teacher(self.document.run(entry.run or ""))
                return
            network = self.networks.network(entry.network)
            document = self.document
            teacher = teacher_config(
                network, entry.weights, entry.pretraining, document.folder, entry.key, known=document.known
            )
            if entry.fine_tune and not teacher.info.classifier:
                raise BadInput(f"{network} is an encoder, which is used as it is: leave fine_tune out")
            if entry.fine_tune and teacher.source == "random":
                raise BadInput("is trained from fresh weights, and fine_tune trains others further: leave it out")
            if teacher.source == "file" and teacher.counts is None:
                teacher = replace(teacher, counts=document.class_counts(teacher.sha256 or "", entry.key))
            if teacher.source != "file" and (entry.mean or entry.std or entry.key):
                raise BadInput("'key', 'mean' and 'std' say something of a file of weights, and none is named")
            self.teachers[name] = replace(teacher, fine_tune=entry.fine_tune, mean=entry.mean, std=entry.std)
        except ValidationError as error:
            self.problems += problems_of(error, self.document, here, {"": TeacherEntry.model_fields})
            self.teachers[name] = default_teacher(network)  # so that its use is not a problem, too
        except BadInput as error:
            key = next((key for key in ("run", "weights", "pretraining") if key in value), "fine_tune")
            self.report((*here, key), str(error))
            self.teachers[name] = default_teacher(network)

    def check_measures(self, entry: MeasureEntry, path: YamlPath) -> None:
        """Report what cannot be measured."""
        for key in ("probe", "similarity"):
            data = getattr(entry, key)
            self.check_datasets(data, (*path, key))
            for index, each in enumerate(data if key == "probe" else ()):
                if each.size:
                    self.report(
                        (*path, key, index, "size"), "images are probed in the size of the network's own: leave it out"
                    )
                if each.facts.streamed:
                    message = f"a probe needs its images in memory, and those of {each.name} stay files"
                    self.report((*path, key, index), message)

    def check_datasets(self, entries: tuple[DatasetEntry, ...], path: YamlPath) -> None:
        """Report parts of data sets that are larger than the whole."""
        for index, entry in enumerate(entries):
            for key, message in subset_errors(entry):
                self.report((*path, index, key), message)
            if entry.size and entry.facts.streamed:
                self.report((*path, index, "size"), f"the images of {entry.name} stay files and cannot be resized once")


def _builders(value: Any) -> Iterator[str]:
    """The names in a grid that may be those of builders, so that all are measured together."""
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key in ("teacher", "student", "pairs", "include")]
    if isinstance(value, list):
        for inner in value:
            yield from _builders(inner)
    elif isinstance(value, str) and (
        ":" in value or (not _is_known(catalogue_network, value) and normalise(value) in short_names())
    ):
        yield value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


_NO_IMAGES = ImagesSpec(
    sha256="0" * 64,
    classes=10,
    size=32,
    train=10_000,
    test=10_000,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    class_names=("",) * 10,
)
"""Stands for a set that cannot be read, while the rest of the suite is checked."""


def _is_known(look_up: Callable[[str], object], name: str) -> bool:
    """Whether a catalogue has a name."""
    try:
        look_up(name)
    except BadInput:
        return False
    return True


def _without(value: dict[str, Any], wrong: InvalidKeys, whole: set[str]) -> dict[str, Any]:
    """The mapping without its wrong keys, and without the wrong items of its lists."""
    rest = {}
    for key, content in value.items():
        if key in wrong:
            keep = key not in whole and isinstance(content, list)
            content = [item for index, item in enumerate(content) if index not in wrong[key]] if keep else []
        if content != [] or key not in wrong:
            rest[key] = content
    return rest
