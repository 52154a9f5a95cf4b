"""What training costs, counted in multiply-accumulates, and how long that takes on a given machine."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.catalogue.terms import term
from kdbench.store.record import compute_of
from kdbench.store.store import Store
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
)


ASSUMED_SPEED = {"cpu": 60e9, "gpu": 5e12}
"""Multiply-accumulates per second where nothing has been measured yet. CPU: about what two AVX-512 cores reach on
resnet32x4 → resnet8x4; GPU: an assumption, not a measurement."""

_BACKWARD = 2
"""A backward pass costs about twice the forward pass."""


def image_counts(spec: DatasetSpec, fraction: float = 1.0) -> tuple[int, int]:
    """Training and test images of a data set as a suite uses it (nominal: classes taken as equal)."""
    whole = spec.facts
    classes = spec.classes or whole.classes
    train, test = whole.train / whole.classes, whole.test / whole.classes
    if spec.val_split:
        train, test = (1 - spec.val_split) * train, spec.val_split * train
    return round((spec.train_per_class or train) * fraction * classes), round((spec.test_per_class or test) * classes)


def forward_macs(network: Network, spec: DatasetSpec, view: Preprocessing | None = None) -> float:
    """Multiply-accumulates of one image's forward pass, at the size in which the network sees it."""
    known = info(network)
    side = (view.size if view else None) or spec.image_size
    return known.macs * (1.0 if known.size else (side / 32) ** 2)


def trained_epochs(spec: RunSpec) -> int:
    """A run's epochs, with those in which a term trains the student before the main training."""
    return spec.recipe.epochs + sum(
        term(use.name, use.source_sha256).initial_epochs(use.hyperparameters) for use in spec.terms
    )


def student_cost(spec: RunSpec) -> float:
    """Multiply-accumulates of a student's training and tests, without its teacher."""
    train, test = image_counts(spec.dataset, spec.scenario.fraction)
    tests = -(-spec.recipe.epochs // spec.recipe.evaluate_every)
    images = (1 + _BACKWARD) * train * _seen(spec) + test * tests
    return images * forward_macs(spec.student, spec.dataset)


def _seen(spec: RunSpec) -> int:
    """How often a run sees each image: once in each epoch, and in the main training its transformed copies, too."""
    return trained_epochs(spec) + spec.recipe.epochs * max(
        term(use.name, use.source_sha256).views for use in spec.terms
    )


def teacher_pass_cost(spec: RunSpec) -> float:
    """Multiply-accumulates of the teacher's forward passes beside one run or a whole cohort."""
    if spec.teacher is None:
        return 0.0
    train, _ = image_counts(spec.dataset, spec.scenario.fraction)
    return train * _seen(spec) * forward_macs(spec.teacher.network, spec.dataset, spec.teacher_view)


def teacher_cost(spec: Stage) -> float:
    """Multiply-accumulates of the last stage of a teacher: nothing for weights that are used as they are."""
    if isinstance(spec, Imported):
        return 0.0
    recipe = spec.recipe
    train, test = image_counts(spec.dataset)
    tests = -(-recipe.epochs // recipe.evaluate_every)
    match spec:
        case Adapter():  # not tested
            images = train * recipe.epochs * (1 + term(spec.term, spec.source_sha256).views)
        case NewLayers():
            images = train * recipe.epochs + test * tests
        case SelfSupervised():  # two views of each image; the test compares with all training images
            images = 2 * (1 + _BACKWARD) * train * recipe.epochs + (train + test) * tests
        case _:
            images = (1 + _BACKWARD) * train * recipe.epochs + test * tests
    return images * forward_macs(spec.network, spec.dataset, recipe)


def measurement_cost(spec: ProbeSpec | SimilaritySpec) -> float:
    """Multiply-accumulates of a measurement's forward passes. What learns on fixed features costs nothing beside them."""
    train, test = image_counts(spec.dataset)
    if isinstance(spec, SimilaritySpec):
        teacher = spec.teacher or spec.source.run.teacher
        shown = forward_macs(teacher.network, spec.dataset, spec.teacher_view) if teacher else 0.0
        return test * (forward_macs(spec.source.network, spec.dataset, spec.student_view) + shown)
    images = train + test if spec.fixed_features else (train + test) * spec.recipe.epochs
    return images * forward_macs(spec.source.network, spec.dataset, spec.recipe)


def cohort_cost(runs: Iterable[RunSpec]) -> float:
    """Multiply-accumulates of runs that share one teacher pass."""
    runs = list(runs)
    return max(map(teacher_pass_cost, runs), default=0.0) + sum(map(student_cost, runs))


def measured_speed(store: Store) -> dict[str, float]:
    """Multiply-accumulates per second by kind of device, from the finished runs of a results directory."""
    work: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for record in store.records("runs"):
        device, macs, spent = compute_of(record.metadata())
        if device in ASSUMED_SPEED and macs > 0 and spent > 0:
            work[device] = work.get(device, 0.0) + macs
            seconds[device] = seconds.get(device, 0.0) + spent
    return {device: work[device] / seconds[device] for device in work}
