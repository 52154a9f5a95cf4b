"""A validated suite and its runs; and its tiny counterpart, with nothing to download.

What is shrunk is written into the specs, so a tiny run has an id of its own. Teachers, students, methods, strategies,
scenarios, measurements and tables stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from kdbench.catalogue.terms import term
from kdbench.datafiles.own_files import ImageSource
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.networks import info
from kdbench.suite.protocol import Protocol
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    Imported,
    Network,
    NewLayers,
    Preprocessing,
    Pretraining,
    Recipe,
    RunSpec,
    Scenario,
    SelfSupervised,
    Stage,
    StudentOf,
    WeightedTerm,
    Weights,
)


AnyStage = TypeVar("AnyStage", bound=Stage)
Part = TypeVar("Part", HeadSpec, Pretraining)

TINY = "tiny "
"""What the name of every tiny run's protocol begins with, and no other protocol's."""

CLASSES = 8
"""As many as the largest batch has images."""

PER_CLASS, DIVIDED_PER_CLASS = 1, 2
"""So many images train and test; so many train under a scenario, which needs some to leave out or to rename."""

SMALL, SIDE = 16, 48
"""In pixels: images of up to SIDE are made SMALL and larger ones SIDE, unless the network takes one size alone, as CLIP's
encoders do."""

COHORT = 6
"""Runs of a cohort, unless its teacher is the costlier part: a student of SemCKD takes up to 0.4 gigabytes."""

RATE = 5.0e-7
"""At a recipe's own rate deep networks diverge on so small batches of so like images. One rate for all recipes leaves fewer
teachers and parts of them that differ."""


@dataclass(frozen=True)
class Run:
    """A run as a suite names it: the place in its tables, and the spec that says what is trained.

    Several runs may share one spec: the plain student stands in every teacher's column but is trained once. ``original`` is
    set for a tiny run: the suite's own run, whose place in the tables it takes.
    """

    suite: str
    protocol: Protocol
    method: str
    teacher: str
    strategy: str
    spec: RunSpec
    original: Run | None = None

    @property
    def own(self) -> Run:
        """The suite's own run: of a tiny one, that in whose place it stands."""
        return self.original or self

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def key(self) -> tuple[str, ...]:
        """The identity of a run within a suite: its spec and its place in the tables."""
        return (self.id, self.protocol.name, self.method, self.teacher, self.strategy)

    @property
    def label(self) -> str:
        """One line for progress and messages."""
        teacher = f"{self.teacher} → " if self.spec.teacher else ""
        return f"{teacher}{self.spec.student} {self.method} #{self.spec.trial}"


@dataclass(frozen=True)
class Measurement:
    """A measurement on a run's student, or on its teacher."""

    run: Run
    of: Literal["student", "teacher"]
    spec: ProbeSpec | SimilaritySpec
    original: Measurement | None = None

    @property
    def own(self) -> Measurement:
        """The suite's own measurement: of a tiny one, that in whose place it stands."""
        return self.original or self


@dataclass(frozen=True)
class Suite:
    """A suite file's content.

    Its runs in the order of the file, what is measured on their networks, the files of weights and the images of one's own
    that it names, by SHA-256, the printed ``tables`` that it fills, and its ``text``. ``tiny`` says that its runs are tiny
    ones in the place of the suite's own, ``devices_per_run`` how many devices train one together (0: as many as are
    worthwhile), ``max_cohort_size`` limits what is in memory together, ``whole`` is the suite of which a part was chosen,
    ``settings`` are the options that changed the text, ``trials`` those that were asked for instead of its own.
    """

    name: str
    file: str
    description: str
    runs: tuple[Run, ...]
    weight_files: dict[str, Path] = field(default_factory=dict)
    image_sources: dict[str, ImageSource] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    devices_per_run: int = 1
    measurements: tuple[Measurement, ...] = ()
    tiny: bool = False
    max_cohort_size: int | None = None
    whole: Suite | None = None
    text: str = ""
    settings: tuple[str, ...] = ()
    trials: int | None = None

    @property
    def specs(self) -> dict[str, RunSpec]:
        """The distinct runs by id."""
        return {run.id: run.spec for run in self.runs}

    def part(self, runs: Iterable[Run]) -> Suite:
        """The part that has some of its runs, with what is measured on their networks."""
        chosen = tuple(runs)
        keys = {run.key for run in chosen}
        measurements = tuple(each for each in self.measurements if each.run.key in keys)
        return replace(self, runs=chosen, measurements=measurements, whole=self.whole or self)

    def renamed(self, name: str) -> Suite:
        """The same under another name."""
        runs = tuple(replace(run, suite=name) for run in self.runs)
        measurements = tuple(replace(each, run=replace(each.run, suite=name)) for each in self.measurements)
        return replace(self, name=name, runs=runs, measurements=measurements)


def devices_per_run(suites: Iterable[Suite]) -> int:
    """How many devices train a run of these suites: the most that one wants, 0 where one leaves it to the scheduler."""
    wanted = [suite.devices_per_run for suite in suites]
    return 0 if 0 in wanted else max(wanted, default=1)


def run_specs(suites: Iterable[Suite]) -> list[RunSpec]:
    """The distinct runs of each suite, suite by suite."""
    return [spec for suite in suites for spec in suite.specs.values()]


def measurement_specs(suites: Iterable[Suite]) -> list[ProbeSpec | SimilaritySpec]:
    """What each suite measures, suite by suite."""
    return [measurement.spec for suite in suites for measurement in suite.measurements]


def tiny_suite(suite: Suite) -> Suite:
    """The suite on a handful of images, one epoch a run. Every run and measurement knows what it stands for."""
    shrink = _Shrinker()
    return replace(
        suite,
        runs=tuple(map(shrink.run, suite.runs)),
        measurements=tuple(map(shrink.measurement, suite.measurements)),
        weight_files={},
        tiny=True,
        max_cohort_size=COHORT,
    )


class _Shrinker:
    """Shrinks specs and protocols, each once: what many runs share stays one object."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.specs: dict[str, RunSpec] = {}
        self.protocols: dict[int, Protocol] = {}

    def run(self, run: Run) -> Run:
        key = id(run.protocol)
        if key not in self.protocols:
            self.protocols[key] = run.protocol.model_copy(update={"name": TINY + run.protocol.name})
        return replace(run, spec=self.spec(run.spec), protocol=self.protocols[key], original=run)

    def measurement(self, measurement: Measurement) -> Measurement:
        spec = measurement.spec
        name = spec.source.network
        changes: dict[str, Any] = {"source": self.stage(spec.source)}
        if isinstance(spec, ProbeSpec):
            changes |= {"dataset": _data(spec.dataset, name), "recipe": _recipe(spec.recipe, name)}
        else:
            changes |= {
                "dataset": _data(spec.dataset),
                "student_view": _view(spec.student_view, name),
                "teacher": spec.teacher and self.stage(spec.teacher),
                "teacher_view": _view(spec.teacher_view, spec.dependencies[-1].network),
            }
        return replace(
            measurement, run=self.run(measurement.run), spec=spec.model_copy(update=changes), original=measurement
        )

    def spec(self, spec: RunSpec) -> RunSpec:
        if spec.id not in self.specs:
            shown = spec.teacher.network if spec.teacher else spec.student
            changes = {
                "teacher": spec.teacher and self.stage(spec.teacher),
                "head": spec.head and _trained(spec.head, shown),
                "teacher_view": spec.teacher_view and _view(spec.teacher_view, shown),
                "terms": tuple(map(_term, spec.terms)),
                "dataset": _data(spec.dataset, train=PER_CLASS if spec.scenario == Scenario() else DIVIDED_PER_CLASS),
                "recipe": _recipe(spec.recipe, spec.student),
                "adapters": tuple(map(self.stage, spec.adapters)),
            }
            self.specs[spec.id] = spec.model_copy(update=changes)
        return self.specs[spec.id]

    def stage(self, stage: AnyStage) -> AnyStage:
        """The stage, with its parents, shrunk."""
        if stage.id not in self.stages:
            self.stages[stage.id] = stage.model_copy(update=self._changes(stage))
        return cast(AnyStage, self.stages[stage.id])

    def _changes(self, stage: Stage) -> dict[str, Any]:
        if isinstance(stage, StudentOf):
            return {"run": self.spec(stage.run)}
        changes: dict[str, Any] = {"dataset": stage.dataset and _data(stage.dataset)}
        if stage.parent:
            changes["parent"] = self.stage(stage.parent)
        match stage:
            case Imported():
                changes["weights"] = Weights(source="random", classifier=stage.weights.classifier)
            case SelfSupervised():
                changes["pretraining"] = _trained(stage.pretraining, stage.network)
            case NewLayers():
                changes["head"] = _trained(stage.head, stage.network)
            case _:
                changes["recipe"] = _recipe(stage.recipe, stage.network)
        return changes


def _data(spec: DatasetSpec, seen_by: Network | None = None, train: int = PER_CLASS) -> DatasetSpec:
    """A stand-in of at most eight classes; ``seen_by`` is the network for whose size it is resized, if any."""
    classes = min(CLASSES, spec.class_count)
    return spec.model_copy(
        update={
            "classes": None if classes == spec.facts.classes else classes,
            "train_per_class": train,
            "test_per_class": PER_CLASS,
            "size": _side(spec.image_size, seen_by) if spec.image_size > SMALL else spec.size,
            "stand_in": True,
        }
    )


def _recipe(recipe: Recipe, seen_by: Network) -> Recipe:
    return recipe.model_copy(
        update={
            "epochs": 1,
            "batch": _batch(recipe.batch),
            "batch_norm_parts": gcd(2, recipe.batch_norm_parts),
            "lr": RATE,
            "momentum": 0.0,
            "nesterov": False,
            "milestones": (),
            "evaluate_every": 1,
            "size": _side(recipe.size, seen_by),
        }
    )


def _batch(batch: int) -> int:
    """16, 32, 64, 128, 256 become 6, 5, 8, 7, 4: still distinct, and enough for every term.

    Most protocols have 64, and one step takes all eight images then: each step costs its weights more than its images. A last
    batch of two, at whose end a map has one pixel, can make the gradients of batch norm explode.
    """
    power = min(CLASSES, max(2, batch.bit_length() - 1))
    return {4: 6, 6: 8, 8: 4}.get(power, power)


def _side(side: int | None, seen_by: Network | None) -> int | None:
    known = info(seen_by) if seen_by else None
    free = known is None or known.size is None
    if side is None or not free:
        return side
    return min(side, max(SIDE if side > SIDE else SMALL, known.smallest if known else 0))


def _view(view: Preprocessing, seen_by: Network) -> Preprocessing:
    return view.model_copy(update={"size": _side(view.size, seen_by)})


def _trained(part: Part, seen_by: Network) -> Part:
    return part.model_copy(update={"recipe": _recipe(part.recipe, seen_by)})


def _term(use: WeightedTerm) -> WeightedTerm:
    """The term with one initial epoch, where it has any."""
    if not term(use.name, use.source_sha256).initial_epochs(use.hyperparameters):
        return use
    return use.model_copy(update={"hyperparameters": {**use.hyperparameters, "initial_epochs": 1}})
