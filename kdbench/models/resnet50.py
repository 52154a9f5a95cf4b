"""ResNet-50 (He et al., CVPR 2016) with a stem for CIFAR: 3 × 3, no stride, no pooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions, run_residual_stages
from kdbench.models.outputs import Outputs


EXPANSION = 4


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolution and a shortcut. The last ReLU is left to the caller."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = F.relu(self.bn2(self.conv2(branch)), inplace=True)
        return self.bn3(self.conv3(branch)).add_(self.shortcut(x))  # type: ignore[no-any-return]


class ResNet50(Backbone):
    """A stem and four stages of 3, 4, 6 and 3 bottlenecks, at 1, 1/2, 1/4 and 1/8 of the image's size."""

    classifier_name = "linear"
    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.width = 2048
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(self.width, classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Outputs:
        """Return the maps after each stage's last ReLU, and before it as pre-activations."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features, preactivations = run_residual_stages((self.layer1, self.layer2, self.layer3, self.layer4), x)
        embedding = features[-1].mean((2, 3))
        return Outputs(self.linear(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage; return the embedding."""
        features, _ = run_residual_stages((self.layer4,), x)
        return features[-1].mean((2, 3))


def build(*, classes: int) -> ResNet50:
    """Build the network."""
    return ResNet50(classes=classes)


def _stage(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(inner * EXPANSION, inner, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, inner, stride), *rest)
