"""ShuffleNetV2 for CIFAR (Ma et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, shuffle_channels
from kdbench.models.outputs import Outputs


STEM = 24


class BasicUnit(nn.Module):
    """One half of the channels as it is, the other through three convolutions. Last ReLU and shuffle are the caller's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves side by side; the first one is the output of an earlier ReLU already."""
        kept, changed = x.chunk(2, dim=1)
        changed = F.relu(self.bn1(self.conv1(changed)), inplace=True)
        changed = self.bn3(self.conv3(self.bn2(self.conv2(changed))))
        return torch.cat([kept, changed], dim=1)


class DownUnit(nn.Module):
    """Two branches at half the map's size, side by side. Last ReLU and shuffle are the caller's."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return both branches side by side."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)


class ShuffleNetV2(Backbone):
    """A 1 × 1 stem at the image's size, three stages of 4, 8 and 4 units at 1/2, 1/4 and 1/8, and a 1 × 1 convolution.

    widths: channels of the stages and of the last convolution
    """

    classifier_name = "linear"
    stages = ("layer1", "layer2", "layer3")
    tail_modules = ("conv2", "bn2")

    def __init__(self, *, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        first, second, third, self.width = widths
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, first, units=4)
        self.layer2 = _stage(first, second, units=8)
        self.layer3 = _stage(second, third, units=4)
        self.conv2 = nn.Conv2d(third, self.width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(self.width)
        self.linear = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> Outputs:
        """Return the stages' maps; pre-activations are those before the last unit's ReLU and channel shuffle."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features, preactivations = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            preactivations.append(_before_last_activation(stage, x))
            x = shuffle_channels(F.relu(preactivations[-1]), 2)
            features.append(x)
        embedding = self._embedding(x)
        return Outputs(self.linear(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage and the 1 × 1 convolution; return the embedding."""
        return self._embedding(shuffle_channels(F.relu(_before_last_activation(self.layer3, x)), 2))

    def _embedding(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True).mean((2, 3))


def build(*, classes: int, widths: Sequence[int]) -> ShuffleNetV2:
    """Build the network with so many channels in its stages and its last convolution."""
    return ShuffleNetV2(widths=widths, classes=classes)


def _stage(inputs: int, width: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(inputs, width), *(BasicUnit(width) for _ in range(units - 1)))


def _before_last_activation(stage: nn.Sequential, x: Tensor) -> Tensor:
    *inner, last = stage
    for unit in inner:
        x = shuffle_channels(F.relu(unit(x), inplace=True), 2)
    return cast(Tensor, last(x))
