"""The residual networks for CIFAR (He et al., CVPR 2016, section 4.2) with projection shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions, run_residual_stages
from kdbench.models.outputs import Outputs


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut. The last ReLU is left to the caller, who may need the map before it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(branch)).add_(shortcut)  # type: ignore[no-any-return]


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Basic blocks of one width; the first one carries the stride."""
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


class ResNet(Backbone):
    """A stem and three stages of ``blocks`` basic blocks, at 1, 1/2 and 1/4 of the image's size.

    widths: channels of the stem and of the three stages
    """

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, *, blocks: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        stem, first, second, third = widths
        self.width = third
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(stem, first, blocks, stride=1)
        self.layer2 = stage(first, second, blocks, stride=2)
        self.layer3 = stage(second, third, blocks, stride=2)
        self.fc = nn.Linear(third, classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Outputs:
        """Return the maps after each stage's last ReLU, and before it as pre-activations."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features, preactivations = run_residual_stages((self.layer1, self.layer2, self.layer3), x)
        embedding = features[-1].mean((2, 3))
        return Outputs(self.fc(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage; return the embedding."""
        features, _ = run_residual_stages((self.layer3,), x)
        return features[-1].mean((2, 3))


def build(*, classes: int, depth: int, widths: Sequence[int]) -> ResNet:
    """Build the network of ``depth`` = 6n + 2 layers, n blocks per stage."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} is not 6n + 2")
    return ResNet(blocks=blocks, widths=widths, classes=classes)
