"""How well an encoder's embeddings tell the classes apart: a vote of the nearest training images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.evaluation.accuracy import Scores, count_hits


NEIGHBOURS, TEMPERATURE = 20, 0.07
"""As Wu et al. (CVPR 2018) weigh neighbours, with 20 of them for their 200: the embedded digits have 100 of each class."""


@torch.no_grad()
def measure_neighbours(
    networks: Sequence[nn.Module],
    train: Iterable[tuple[Tensor, Tensor]],
    test: Iterable[tuple[Tensor, Tensor]],
    classes: int,
) -> list[Scores]:
    """Top-1 and top-5 of a vote among the nearest training images by cosine, weighted by exp(cosine / 0.07).

    The networks are left in eval mode.
    """
    return [_measure(network.eval(), train, test, classes) for network in networks]


def _measure(
    network: nn.Module, train: Iterable[tuple[Tensor, Tensor]], test: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Scores:
    known = [(_unit(network, images), labels) for images, labels in train]
    embeddings, labels = torch.cat([each for each, _ in known]), torch.cat([each for _, each in known])
    total, count = torch.zeros(2, dtype=torch.int64, device=labels.device), 0
    for images, right in test:
        cosine, nearest = (_unit(network, images) @ embeddings.T).topk(min(NEIGHBOURS, len(labels)), dim=1)
        votes = torch.zeros(len(right), classes, device=labels.device)
        votes.scatter_add_(1, labels[nearest], (cosine / TEMPERATURE).exp())
        total += count_hits(votes, right)
        count += len(right)
    first, fifth = total.tolist()
    return Scores(100 * first / count, 100 * fifth / count)


def _unit(network: nn.Module, images: Tensor) -> Tensor:
    embedding: Tensor = network(images).embedding
    return F.normalize(embedding.float(), dim=1)
