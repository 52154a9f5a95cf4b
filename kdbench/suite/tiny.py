"""A suite's tiny counterpart: the same grid for one epoch on a handful of images, with nothing to download.

What is shrunk is written into the specs, so a tiny run has an id of its own. Teachers, students, methods, strategies,
scenarios, measurements and tables stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, cast

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import term
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.protocol import Protocol
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    Imported,
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
from kdbench.suite.suite import Measurement, Run, Suite


AnyStage = TypeVar("AnyStage", bound=Stage)
Part = TypeVar("Part", HeadSpec, Pretraining)

TINY = "tiny "
"""What the name of every tiny run's protocol begins with, and no other protocol's."""

CLASSES = 8
"""As many as the largest batch has images."""

PER_CLASS, DIVIDED_PER_CLASS = 1, 2
"""So many images train and test; so many train under a scenario, which needs some to leave out or to rename."""

SIDE = 48
"""In pixels: larger images are made so small, unless the network takes one size alone, as CLIP's encoders do."""

COHORT = 6
"""Runs of a cohort, unless its teacher is the costlier part: a student of SemCKD takes up to 0.4 gigabytes."""

RATE = 5.0e-7
"""At a recipe's own rate deep networks diverge on so small batches of so like images. One rate for all recipes leaves fewer
teachers and parts of them that differ."""


def tiny_suite(suite: Suite) -> Suite:
    """The suite with every run and measurement shrunk, each of which knows what it stands for."""
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
        protocol = self.protocols.get(id(run.protocol))
        if protocol is None:
            protocol = run.protocol.model_copy(update={"name": TINY + run.protocol.name})
            self.protocols[id(run.protocol)] = protocol
        return replace(run, spec=self.spec(run.spec), protocol=protocol, original=run)

    def measurement(self, measurement: Measurement) -> Measurement:
        spec = measurement.spec
        small = self._probe(spec) if isinstance(spec, ProbeSpec) else self._similarity(spec)
        return replace(measurement, run=self.run(measurement.run), spec=small, original=measurement)

    def spec(self, spec: RunSpec) -> RunSpec:
        if spec.id not in self.specs:
            self.specs[spec.id] = self._spec(spec)
        return self.specs[spec.id]

    def teacher(self, spec: AnyStage) -> AnyStage:
        """The stage, with its parents, shrunk."""
        if spec.id not in self.stages:
            self.stages[spec.id] = self._stage(spec)
        return cast(AnyStage, self.stages[spec.id])

    def _spec(self, spec: RunSpec) -> RunSpec:
        shown = spec.teacher.network if spec.teacher else spec.student
        changes = {
            "teacher": spec.teacher and self.teacher(spec.teacher),
            "head": spec.head and _trained(spec.head, shown),
            "teacher_view": spec.teacher_view and _view(spec.teacher_view, shown),
            "terms": tuple(map(_term, spec.terms)),
            "dataset": _data(spec.dataset, train=PER_CLASS if spec.scenario == Scenario() else DIVIDED_PER_CLASS),
            "recipe": _recipe(spec.recipe, spec.student),
            "adapters": tuple(map(self.teacher, spec.adapters)),
        }
        return spec.model_copy(update=changes)

    def _stage(self, spec: Stage) -> Stage:
        name = spec.network
        changes: dict[str, Any] = {"dataset": spec.dataset and _data(spec.dataset)}
        if spec.parent:
            changes["parent"] = self.teacher(spec.parent)
        match spec:
            case StudentOf():
                changes = {"run": self.spec(spec.run)}
            case Imported():
                changes["weights"] = Weights(source="random", classifier=spec.weights.classifier)
            case SelfSupervised():
                changes["pretraining"] = _trained(spec.pretraining, name)
            case NewLayers():
                changes["head"] = _trained(spec.head, name)
            case _:
                changes["recipe"] = _recipe(spec.recipe, name)
        return spec.model_copy(update=changes)

    def _probe(self, spec: ProbeSpec) -> ProbeSpec:
        name = spec.source.network
        changes = {
            "source": self.teacher(spec.source),
            "dataset": _data(spec.dataset, name),
            "recipe": _recipe(spec.recipe, name),
        }
        return spec.model_copy(update=changes)

    def _similarity(self, spec: SimilaritySpec) -> SimilaritySpec:
        shown = spec.dependencies[-1].network
        changes = {
            "source": self.teacher(spec.source),
            "dataset": _data(spec.dataset),
            "student_view": _view(spec.student_view, spec.source.network),
            "teacher": spec.teacher and self.teacher(spec.teacher),
            "teacher_view": _view(spec.teacher_view, shown),
        }
        return spec.model_copy(update=changes)


def _data(spec: DatasetSpec, seen_by: str = "", train: int = PER_CLASS) -> DatasetSpec:
    """A stand-in of at most eight classes; ``seen_by`` is the network for whose size it is resized, if any."""
    classes = min(CLASSES, spec.class_count)
    return spec.model_copy(
        update={
            "classes": None if classes == dataset(spec.name).classes else classes,
            "train_per_class": train,
            "test_per_class": PER_CLASS,
            "size": _side(spec.image_size, seen_by) if spec.image_size > SIDE else spec.size,
            "stand_in": True,
        }
    )


def _recipe(recipe: Recipe, seen_by: str) -> Recipe:
    return recipe.model_copy(
        update={
            "epochs": 1,
            "batch": _batch(recipe.batch),
            "lr": RATE,
            "momentum": 0.0,
            "nesterov": False,
            "milestones": (),
            "evaluate_every": 1,
            "size": _side(recipe.size, seen_by),
        }
    )


def _batch(batch: int) -> int:
    """16, 32, 64, 128, 256 become 4, 5, 6, 7, 8: still distinct, and no more than the images of the smallest scenario."""
    return min(CLASSES, max(2, batch.bit_length() - 1))


def _side(side: int | None, seen_by: str) -> int | None:
    free = not seen_by or network(seen_by).size is None
    return min(side, SIDE) if side and free else side


def _view(view: Preprocessing, seen_by: str) -> Preprocessing:
    return view.model_copy(update={"size": _side(view.size, seen_by)})


def _trained(part: Part, seen_by: str) -> Part:
    return part.model_copy(update={"recipe": _recipe(part.recipe, seen_by)})


def _term(use: WeightedTerm) -> WeightedTerm:
    """The term with one initial epoch, where it has any."""
    if not term(use.name, use.source_sha256).initial_epochs(use.hyperparameters):
        return use
    return use.model_copy(update={"hyperparameters": {**use.hyperparameters, "initial_epochs": 1}})
