"""What training costs, counted: multiply-accumulates, activations, layers run, weights updated, images decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from kdbench.catalogue.terms import costs, term
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.networks import info
from kdbench.suite.specs import (
    Adapter,
    DatasetSpec,
    Imported,
    Network,
    NewLayers,
    Preprocessing,
    RunSpec,
    SelfSupervised,
    Stage,
    WeightedTerm,
)


_TRAINING = 3
"""A backward pass costs about twice the forward pass, so that training on a batch counts as three passes."""

_TEST_BATCH = 250
"""About how many test images a network sees at once."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the time of a training depends on, counted over all of its passes.

    macs:        multiply-accumulates: arithmetic
    activations: elements that convolutions and linear layers give: traffic to and from memory (Radosavovic et al., Designing
                 Network Design Spaces, 2020, find them a better predictor of time than macs)
    layers:      how often a layer is run on a batch: launches, and what Python does for them
    updates:     how often a weight is updated: gradients and the optimiser
    files:       images decoded from files
    """

    macs: float = 0.0
    activations: float = 0.0
    layers: float = 0.0
    updates: float = 0.0
    files: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.macs + other.macs,
            self.activations + other.activations,
            self.layers + other.layers,
            self.updates + other.updates,
            self.files + other.files,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * value for value in self.values()))

    def values(self) -> tuple[float, float, float, float, float]:
        """The counts, in the order of the fields."""
        return self.macs, self.activations, self.layers, self.updates, self.files


NOTHING = Work()


def image_counts(spec: DatasetSpec, fraction: float = 1.0) -> tuple[int, int]:
    """Training and test images of a data set as a suite uses it (nominal: classes taken as equal)."""
    whole = spec.facts
    classes = spec.classes or whole.classes
    train, test = whole.train / whole.classes, whole.test / whole.classes
    if spec.val_split:
        train, test = (1 - spec.val_split) * train, spec.val_split * train
    return round((spec.train_per_class or train) * fraction * classes), round((spec.test_per_class or test) * classes)


def forward(
    network: Network, spec: DatasetSpec, images: float, batches: float, view: Preprocessing | None = None
) -> Work:
    """Forward passes of ``images`` in ``batches``, at the size in which the network sees them."""
    known = info(network)
    side = (view.size if view else None) or spec.image_size
    shown = images * (1.0 if known.size else (side / 32) ** 2)
    return Work(shown * known.macs, shown * known.activations, batches * known.layers)


def _tests(network: Network, spec: DatasetSpec, images: float, view: Preprocessing | None = None) -> Work:
    tested = forward(network, spec, images, images / _TEST_BATCH, view)
    return tested + _reading(spec, images)


def _reading(spec: DatasetSpec, images: float) -> Work:
    return Work(files=images) if spec.facts.streamed and not spec.stand_in else NOTHING


def trained_epochs(spec: RunSpec) -> int:
    """A run's epochs, with those in which a term trains the student before the main training."""
    return spec.recipe.epochs + sum(
        term(use.name, use.source_sha256).initial_epochs(use.hyperparameters) for use in spec.terms
    )


def student_work(spec: RunSpec) -> Work:
    """A student's training and tests, without its teacher's passes and the reading of training images.

    What its terms compute themselves is in it as far as that was measured, on one pair of networks: as multiply-accumulates,
    in proportion to those of the networks.
    """
    train, test = image_counts(spec.dataset, spec.scenario.fraction)
    images = train * _seen(spec)
    batches = images / spec.recipe.batch
    passes = forward(spec.student, spec.dataset, images, batches) * _TRAINING
    own = sum(map(_own_share, spec.terms))
    if own:
        passes += Work(macs=own * (passes.macs + teacher_pass_work(spec).macs))
    updates = Work(updates=info(spec.student).parameters * batches)
    tests = -(-spec.recipe.epochs // spec.recipe.evaluate_every)
    return passes + updates + _tests(spec.student, spec.dataset, test * tests)


def _own_share(use: WeightedTerm) -> float:
    """What a term computes beside the networks, as a share of what they compute for it."""
    return _measured_share(use.name) if use.source_sha256 is None else 0.0


@cache
def _measured_share(name: str) -> float:
    """The time of kd's step that a term takes beyond kd's and its views of each image; 0 where nothing was measured."""
    measured = costs().of(name)
    if measured is None or measured.teacher == "none":
        return 0.0
    return max(0.0, measured.time / (1 + term(name).views) - 1)


def _seen(spec: RunSpec) -> int:
    """How often a run sees each image: once in each epoch, and in the main training its transformed copies, too."""
    return trained_epochs(spec) + spec.recipe.epochs * max(
        term(use.name, use.source_sha256).views for use in spec.terms
    )


def teacher_pass_work(spec: RunSpec) -> Work:
    """The teacher's forward passes beside one run or a whole cohort."""
    if spec.teacher is None:
        return NOTHING
    train, _ = image_counts(spec.dataset, spec.scenario.fraction)
    images = train * _seen(spec)
    return forward(spec.teacher.network, spec.dataset, images, images / spec.recipe.batch, spec.teacher_view)


def teacher_work(spec: Stage) -> Work:
    """The last stage of a teacher: nothing for weights that are used as they are."""
    if isinstance(spec, Imported):
        return NOTHING
    recipe = spec.recipe
    train, test = image_counts(spec.dataset)
    seen, tests = train * recipe.epochs, -(-recipe.epochs // recipe.evaluate_every)
    factor, updated, tested = _TRAINING, info(spec.network).parameters, test
    match spec:
        case Adapter():  # not tested
            seen *= 1 + term(spec.term, spec.source_sha256).views
            factor, updated, tested = 1, 0, 0
        case NewLayers():
            factor, updated = 1, 0
        case SelfSupervised():  # two views of each image; the test compares with all training images
            seen, tested = 2 * seen, train + test
    batches = seen / recipe.batch
    trained = forward(spec.network, spec.dataset, seen, batches, recipe) * factor + Work(updates=updated * batches)
    return trained + _reading(spec.dataset, seen) + _tests(spec.network, spec.dataset, tested * tests, recipe)


def measurement_work(spec: ProbeSpec | SimilaritySpec) -> Work:
    """A measurement's forward passes. What learns on fixed features costs nothing beside them."""
    train, test = image_counts(spec.dataset)
    if isinstance(spec, SimilaritySpec):
        teacher = spec.teacher or spec.source.run.teacher
        shown = _tests(teacher.network, spec.dataset, test, spec.teacher_view) if teacher else NOTHING
        return _tests(spec.source.network, spec.dataset, test, spec.student_view) + shown
    images = train + test if spec.fixed_features else (train + test) * spec.recipe.epochs
    return _tests(spec.source.network, spec.dataset, images, spec.recipe)


def shared_work(runs: Sequence[RunSpec], *, cached: bool = False) -> Work:
    """What runs of a cohort share: the images of their stream, and the teacher's passes unless its outputs are ``cached``."""
    if not runs:
        return NOTHING
    longest = max(runs, key=_seen)
    train, _ = image_counts(longest.dataset, longest.scenario.fraction)
    read = _reading(longest.dataset, train * max(map(trained_epochs, runs)))
    taught = [] if cached else [run for run in runs if run.teacher]
    return teacher_pass_work(max(taught, key=_seen)) + read if taught else read


def cohort_work(runs: Sequence[RunSpec], *, cached: bool = False) -> Work:
    """Runs that train together."""
    return sum(map(student_work, runs), shared_work(runs, cached=cached))
