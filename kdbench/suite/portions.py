"""Whether a data set has as many images as a part of it asks for."""

from __future__ import annotations

from kdbench.catalogue.datasets import dataset
from kdbench.suite.specs import DatasetSpec, Scenario


def oversized(spec: DatasetSpec) -> list[tuple[str, str]]:
    """The keys of a part that ask for more than there is, each with a message; classes are taken as equally large."""
    whole = dataset(spec.name)
    train, test = whole.train // whole.classes, whole.test // whole.classes
    rest, measured = spec.split(train, test)
    if not rest or not measured:
        lost = "to measure on" if rest else "to train on"
        message = f"{spec.val_split} of the {train:,} training images of a class of {spec.name} leaves none {lost}"
        return [("val_split", message)]
    limits = {"classes": whole.classes, "train_per_class": rest, "test_per_class": measured}
    where = f" when {spec.val_split} of the training set is held out" if spec.val_split else ""
    return [
        (key, f"{spec.name} has only {limit} {key.replace('_', ' ')}{where if key != 'classes' else ''}, not {value}")
        for key, limit in limits.items()
        if (value := getattr(spec, key) or 0) > limit
    ]


def training_images(spec: DatasetSpec, scenario: Scenario) -> int:
    """How many images a student learns from; classes are taken as equally large."""
    whole = dataset(spec.name)
    rest, _ = spec.split(whole.train // whole.classes, 0)
    return spec.class_count * max(1, round(scenario.fraction * (spec.train_per_class or rest)))
