"""What is done to the student's training set: fewer images per class, wrong labels. The same for every method."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.images import ImageSet
from kdbench.data.seeds import generator
from kdbench.suite.specs import DatasetSpec, Scenario


def apply_scenario(train: ImageSet, scenario: Scenario, spec: DatasetSpec, trial: int) -> ImageSet:
    """Keep ``fraction`` of each class, then move the labels of a share ``label_noise`` of each class to another class.

    Both draws depend on the data set and the trial alone. The images of a smaller fraction are among those of a larger.
    """
    if scenario.fraction < 1.0:
        train = train.select(_few_shot(train, scenario.fraction, generator("fraction", spec.canonical(), trial)))
    if scenario.label_noise > 0.0:
        noisy = _noisy_labels(train, scenario.label_noise, generator("label noise", spec.canonical(), trial))
        train = ImageSet(train.images, noisy, train.classes, clean=train.labels)
    return train


def _few_shot(train: ImageSet, fraction: float, draw: torch.Generator) -> Tensor:
    kept = []
    for members, order in _shuffled_classes(train, draw):
        count = max(1, round(fraction * len(members)))
        kept.append(members[order[:count]])
    return torch.cat(kept).sort().values


def _noisy_labels(train: ImageSet, share: float, draw: torch.Generator) -> Tensor:
    labels = train.labels.clone()
    for members, order in _shuffled_classes(train, draw):
        shifts = torch.randint(1, train.classes, (len(members),), generator=draw)
        count = round(share * len(members))
        chosen = members[order[:count]]
        labels[chosen] = (labels[chosen] + shifts[:count]) % train.classes
    return labels


def _shuffled_classes(train: ImageSet, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    members = [(train.labels == label).nonzero().flatten() for label in range(train.classes)]
    return [(each, torch.randperm(len(each), generator=draw)) for each in members if len(each)]
