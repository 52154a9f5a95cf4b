"""ShuffleNet for CIFAR (Zhang et al., CVPR 2018), three groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, run_residual_stages, shuffle_channels
from kdbench.models.outputs import Outputs


GROUPS = 3
STEM = 24


class Unit(nn.Module):
    """Grouped 1 × 1, depthwise 3 × 3 and grouped 1 × 1 convolution. The last ReLU is left to the caller.

    The authors of the distillation benchmarks put a ReLU behind the depthwise convolution, where the paper has none.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if inputs == STEM else GROUPS
        branch = outputs if stride == 1 else outputs - inputs
        inner = branch // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch plus the input, or beside the pooled input where the unit has a stride."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = F.relu(self.bn2(self.conv2(shuffle_channels(branch, self.groups))), inplace=True)
        branch = self.bn3(self.conv3(branch))
        if self.stride == 1:
            return branch.add_(x)  # type: ignore[no-any-return]
        return torch.cat([branch, F.avg_pool2d(x, 3, self.stride, padding=1)], dim=1)


class ShuffleNetV1(Backbone):
    """A 1 × 1 stem at the image's size and three stages of 4, 8 and 4 units, at 1/2, 1/4 and 1/8, of so many ``widths``."""

    classifier_name = "linear"
    stages = ("layer1", "layer2", "layer3")

    def __init__(self, *, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        first, second, self.width = widths
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, first, units=4)
        self.layer2 = _stage(first, second, units=8)
        self.layer3 = _stage(second, self.width, units=4)
        self.linear = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> Outputs:
        """Return the maps after each stage's last ReLU, and before it as pre-activations."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features, preactivations = run_residual_stages((self.layer1, self.layer2, self.layer3), x)
        embedding = features[-1].mean((2, 3))
        return Outputs(self.linear(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage; return the embedding."""
        features, _ = run_residual_stages((self.layer3,), x)
        return features[-1].mean((2, 3))


def build(*, classes: int, widths: Sequence[int]) -> ShuffleNetV1:
    """Build the network with so many channels in its three stages."""
    return ShuffleNetV1(widths=widths, classes=classes)


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(units - 1)))
