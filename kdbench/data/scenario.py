"""What is done to the student's training set: fewer images per class, wrong labels. The same for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kdbench.data.images import AnySet
from kdbench.data.seeds import generator
from kdbench.suite.specs import DatasetSpec, Scenario


def apply_scenario(train: AnySet, scenario: Scenario, spec: DatasetSpec, trial: int) -> AnySet:
    """Keep ``fraction`` of each class, then give wrong labels to a share ``label_noise``, as ``noise`` says.

    Both draws depend on the data set and the trial alone. The images of a smaller fraction are among those of a larger, the
    labels that a smaller share changes among those that a larger does; `other` and `all` draw for the same images.
    """
    if scenario.fraction < 1.0:
        draw = generator("fraction", spec.canonical(), trial)
        train = train.select(_few_shot(train.labels, train.classes, scenario.fraction, draw))
    if scenario.label_noise > 0.0:
        draw = generator("label noise", spec.canonical(), trial)
        noisy = _NOISE[scenario.noise](train.labels, train.classes, scenario.label_noise, draw)
        train = replace(train, labels=noisy, clean=train.labels)
    return train


def _few_shot(labels: Tensor, classes: int, fraction: float, draw: torch.Generator) -> Tensor:
    kept = []
    for members, order in _shuffled_classes(labels, classes, draw):
        count = max(1, round(fraction * len(members)))
        kept.append(members[order[:count]])
    return torch.cat(kept).sort().values


def _redrawn(labels: Tensor, classes: int, share: float, draw: torch.Generator, smallest_shift: int = 0) -> Tensor:
    """Labels moved on by a random number of classes, for a share of each class.

    Where that is no whole number of images, the classes that lack most of one give it (of equals, those that are drawn for
    it), so that the share of all is right.
    """
    noisy = labels.clone()
    drawn = []
    for members, order in _shuffled_classes(labels, classes, draw):
        drawn.append((members, order, torch.randint(smallest_shift, classes, (len(members),), generator=draw)))
    sizes = [share * len(members) + 1e-9 for members, _, _ in drawn]  # 0.3 * 10 is not quite 3
    left = round(share * len(labels)) - sum(map(int, sizes))
    lots = torch.randperm(len(drawn), generator=draw).tolist()
    by_rest = sorted(range(len(drawn)), key=lambda index: (-round(sizes[index] % 1, 6), lots[index]))
    more = set(by_rest[:left])
    for index, (members, order, shifts) in enumerate(drawn):
        count = int(sizes[index]) + (index in more)
        chosen = members[order[:count]]
        noisy[chosen] = (noisy[chosen] + shifts[:count]) % classes
    return noisy


def _renamed_classes(labels: Tensor, classes: int, share: float, draw: torch.Generator) -> Tensor:
    """All labels of a share of the classes moved on together; two classes may end as one."""
    shifts = torch.randint(1, classes, (classes,), generator=draw)
    renamed = torch.randperm(classes, generator=draw)[: round(share * classes)]
    names = torch.arange(classes)
    names[renamed] = (renamed + shifts[renamed]) % classes
    return names[labels]


_NOISE: dict[str, Callable[[Tensor, int, float, torch.Generator], Tensor]] = {
    "other": partial(_redrawn, smallest_shift=1),
    "all": _redrawn,
    "classes": _renamed_classes,
}


def _shuffled_classes(labels: Tensor, classes: int, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return [(each, torch.randperm(len(each), generator=draw)) for each in members if len(each)]
