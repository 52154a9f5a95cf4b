"""The ResNets for ImageNet (He et al., CVPR 2016), under torchvision's names, and their usual form for CIFAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions, run_residual_stages
from kdbench.models.outputs import Outputs
from kdbench.models.resnet import stage


EXPANSION = 4


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 with the stride, and 1 × 1 convolution and a shortcut. The last ReLU is left to the caller."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = F.relu(self.bn2(self.conv2(branch)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(branch)).add_(shortcut)  # type: ignore[no-any-return]


class ImageNetResNet(Backbone):
    """A 7 × 7 stem with max-pooling and four stages of blocks, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

    For CIFAR the stem is a 3 × 3 convolution without stride and pooling, and the stages are at 1, 1/2, 1/4 and 1/8; the
    initial weights are torch's own. Checkpoints of that form call shortcuts `shortcut`.

    blocks:     how many in each stage
    bottleneck: whether they are bottlenecks of four times the channels, or basic blocks
    wider:      how many times the usual channels all layers have
    cifar:      whether it has the form for CIFAR
    """

    stages = ("layer1", "layer2", "layer3", "layer4")
    module_aliases: ClassVar[Mapping[str, str]] = {"shortcut": "downsample"}

    def __init__(self, *, blocks: Sequence[int], bottleneck: bool, wider: int, cifar: bool, classes: int) -> None:
        super().__init__()
        expansion, make = (EXPANSION, _bottlenecks) if bottleneck else (1, stage)
        first, second, third, fourth = (wider * channels for channels in (64, 128, 256, 512))
        self.width = fourth * expansion
        self.conv1 = nn.Conv2d(3, first, 3 if cifar else 7, 1 if cifar else 2, padding=1 if cifar else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = make(first, first, blocks[0], 1)
        self.layer2 = make(first * expansion, second, blocks[1], 2)
        self.layer3 = make(second * expansion, third, blocks[2], 2)
        self.layer4 = make(third * expansion, fourth, blocks[3], 2)
        self.fc = nn.Linear(self.width, classes)
        self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, padding=1)
        if cifar:
            names = {
                name: name.replace("downsample", "shortcut").replace("fc.", "linear.") for name in self.state_dict()
            }
            self.key_aliases = {theirs: ours for ours, theirs in names.items() if theirs != ours}
        else:
            initialise_convolutions(self)

    def forward(self, images: Tensor) -> Outputs:
        """Return the pooled stem, the maps after each stage's last ReLU, and before it as pre-activations."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.pool(x)
        features, preactivations = run_residual_stages((self.layer1, self.layer2, self.layer3, self.layer4), x)
        embedding = features[-1].mean((2, 3))
        return Outputs(self.fc(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage; return the embedding."""
        features, _ = run_residual_stages((self.layer4,), x)
        return features[-1].mean((2, 3))


def build(
    *, classes: int, blocks: Sequence[int], bottleneck: bool = False, wider: int = 1, cifar: bool = False
) -> ImageNetResNet:
    """Build the network with so many basic blocks or bottlenecks in each of its four stages."""
    return ImageNetResNet(blocks=blocks, bottleneck=bottleneck, wider=wider, cifar=cifar, classes=classes)


def _bottlenecks(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(inner * EXPANSION, inner, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, inner, stride), *rest)
