"""What is done to the student's training set: fewer images per class, wrong labels. The same for every method."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdbench.data.images import AnySet
from kdbench.data.seeds import generator
from kdbench.suite.specs import DatasetSpec, Scenario


def apply_scenario(train: AnySet, scenario: Scenario, spec: DatasetSpec, trial: int) -> AnySet:
    """Keep ``fraction`` of each class, then move the labels of a share ``label_noise`` of each class to another class.

    Both draws depend on the data set and the trial alone. The images of a smaller fraction are among those of a larger.
    """
    if scenario.fraction < 1.0:
        draw = generator("fraction", spec.canonical(), trial)
        train = train.select(_few_shot(train.labels, train.classes, scenario.fraction, draw))
    if scenario.label_noise > 0.0:
        draw = generator("label noise", spec.canonical(), trial)
        noisy = _noisy_labels(train.labels, train.classes, scenario.label_noise, draw)
        train = replace(train, labels=noisy, clean=train.labels)
    return train


def _few_shot(labels: Tensor, classes: int, fraction: float, draw: torch.Generator) -> Tensor:
    kept = []
    for members, order in _shuffled_classes(labels, classes, draw):
        count = max(1, round(fraction * len(members)))
        kept.append(members[order[:count]])
    return torch.cat(kept).sort().values


def _noisy_labels(labels: Tensor, classes: int, share: float, draw: torch.Generator) -> Tensor:
    noisy = labels.clone()
    for members, order in _shuffled_classes(labels, classes, draw):
        shifts = torch.randint(1, classes, (len(members),), generator=draw)
        count = round(share * len(members))
        chosen = members[order[:count]]
        noisy[chosen] = (noisy[chosen] + shifts[:count]) % classes
    return noisy


def _shuffled_classes(labels: Tensor, classes: int, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return [(each, torch.randperm(len(each), generator=draw)) for each in members if len(each)]
