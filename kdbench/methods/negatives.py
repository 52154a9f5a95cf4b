"""Which other images an image is contrasted with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.errors import BadInput


class Drawn(NamedTuple):
    """Columns [B, 1 + W] of the bank, the positive first, and which of them count: [B, 1 + W] bool."""

    columns: Tensor
    used: Tensor


class Negatives(nn.Module):
    """Draws images of other classes from the training set, on the device, from torch's own generator.

    Without replacement, all images of a batch share one shuffle of the set: each starts at a random place in it and
    takes the next ``count`` images of other classes, around the end. So each has a uniformly drawn set, and the sets of
    two images overlap on average as much as if each had a shuffle of its own, for a fraction of the time.

    Raises BadInput where the set has a single class.
    """

    labels: Tensor
    by_class: Tensor
    first: Tensor
    size: Tensor

    def __init__(self, labels: Tensor, count: int) -> None:
        super().__init__()
        sizes = labels.bincount()
        largest = int(sizes.max())
        if largest == len(labels):
            raise BadInput("crd: all training images are of one class: there is nothing to contrast them with")
        self.count = count
        self.replace = count > len(labels) - largest
        self.window = min(count + largest, len(labels))
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("size", sizes, persistent=False)

    def draw(self, indices: Tensor, *, relax: bool) -> Drawn:
        """Draw for the images ``indices`` [B]. The positive is the image itself; with ``relax`` any image of its class."""
        own = self.labels[indices]
        positive = self.by_class[self.first[own] + below(self.size[own])] if relax else indices
        columns, used = self._again_and_again(own) if self.replace else self._shuffled(own)
        always = torch.ones_like(used[:, :1])
        return Drawn(torch.cat([positive[:, None], columns], 1), torch.cat([always, used], 1))

    def _again_and_again(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """With replacement: ranks among the images of other classes, which lie before and after the own class."""
        others = (len(self.labels) - self.size[own])[:, None].expand(-1, self.count)
        rank = below(others)
        place = rank + (rank >= self.first[own][:, None]) * self.size[own][:, None]
        return self.by_class[place], torch.ones_like(place, dtype=torch.bool)

    def _shuffled(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Without replacement: windows of a shuffle, wide enough for ``count`` images of other classes."""
        total, device = len(self.labels), self.labels.device
        shuffle = torch.randperm(total, device=device)
        start = torch.randint(total, (len(own),), device=device)
        around = torch.cat([shuffle, shuffle[: self.window]])
        columns = around.unfold(0, self.window, 1)[start]
        other = self.labels[around].unfold(0, self.window, 1)[start] != own[:, None]
        return columns, other & (other.cumsum(1, dtype=torch.int32) <= self.count)


def below(limits: Tensor) -> Tensor:
    """A whole number from 0 to limit - 1 for each limit."""
    return torch.randint(2**62, limits.shape, device=limits.device) % limits
