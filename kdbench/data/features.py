"""Fixed features of images in place of the images: what learns on a frozen backbone needs no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.data.seeds import generator


class FeatureStream:
    """Batches of features in a new order each epoch, a pure function of seed and epoch.

    features: [N, D] float32, labels: [N] int64
    """

    def __init__(self, features: Tensor, labels: Tensor, batch: int, seed: tuple[object, ...]) -> None:
        self.features, self.labels, self.batch, self.seed = features, labels, batch, seed

    def __len__(self) -> int:
        """Images per epoch."""
        return len(self.labels)

    def epoch(
        self, epoch: int, *, taught: bool = True, transforms: Sequence[str] = (), first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1."""
        order = torch.randperm(len(self), generator=generator("features", *self.seed, epoch))
        for indices in torch.split(order.to(self.labels.device), self.batch)[first:]:
            yield Batch(images=self.features[indices], labels=self.labels[indices], indices=indices)


@torch.no_grad()
def embed(network: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] float32 and labels [N] of all images. The network is left in eval mode."""
    network.eval()
    found = [(network(batch).embedding.float(), labels) for batch, labels in images]
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])
