"""The network that is exported: images in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.data.preprocess import resize


class Classifier(nn.Module):
    """A network with its preprocessing: images [B, 3, H, W], uint8 or float from 0 to 1, to logits [B, K].

    sizes:     images are resized to squares of so many pixels a side, one after the other; () where they have their size
    mean, std: of each channel, for values from 0 to 1
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, sizes: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.sizes = tuple(sizes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        pixels = images.float() if images.dtype == torch.uint8 else images * 255
        for size in self.sizes:
            pixels = resize(pixels, size)
        logits: Tensor = self.network((pixels / 255 - self.mean) / self.std).logits
        return logits
