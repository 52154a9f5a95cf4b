"""Top-1 and top-5 accuracy on a test set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent. With fewer than five classes, top5 counts all of them."""

    top1: float
    top5: float


@torch.no_grad()
def measure(networks: Sequence[nn.Module], test: Iterable[tuple[Tensor, Tensor]]) -> list[Scores]:
    """Test several networks in one pass over the test set. They are left in eval mode."""
    if not networks:
        return []
    for network in networks:
        network.eval()
    totals: list[Tensor | int] = [0] * len(networks)
    count = 0
    for images, labels in test:
        count += len(labels)
        for index, network in enumerate(networks):
            totals[index] = totals[index] + count_hits(network(images).logits, labels)
    hits = [total.tolist() if isinstance(total, Tensor) else [0, 0] for total in totals]
    return [Scores(100 * first / count, 100 * fifth / count) for first, fifth in hits]


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """[2] int64: how many labels are the first, and among the first five, of the classes."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = top == labels[:, None]
    return torch.stack([right[:, 0].sum(), right.sum()])
