"""ShuffleNetV2 for ImageNet (Ma et al., ECCV 2018), under torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, shuffle_channels
from kdbench.models.outputs import Outputs


STEM = 24


class Unit(nn.Module):
    """Two branches side by side, shuffled. With stride 1 each takes half of the channels, and the first changes nothing."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride != 1:
            self.branch1.extend([*_depthwise(inputs, stride), *_pointwise(inputs, half)])
        entering = half if stride == 1 else inputs
        self.branch2 = nn.Sequential(*_pointwise(entering, half), *_depthwise(half, stride), *_pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's map, which has no negative values."""
        first, second = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        return shuffle_channels(torch.cat([self.branch1(first), self.branch2(second)], dim=1), 2)


class ImageNetShuffleNetV2(Backbone):
    """A 3 × 3 stem with max-pooling, three stages at 1/8, 1/16 and 1/32 of the image's size, and a 1 × 1 convolution.

    widths: channels of the stages and of the last convolution
    """

    tail_modules = ("conv5",)

    def __init__(self, *, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        first, second, third, self.width = widths
        stem = nn.Conv2d(3, STEM, 3, 2, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        self.stage2 = _stage(STEM, first, units=4)
        self.stage3 = _stage(first, second, units=8)
        self.stage4 = _stage(second, third, units=4)
        self.conv5 = nn.Sequential(*_pointwise(third, self.width))
        self.fc = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> Outputs:
        """Return the pooled stem and the stages' maps, which serve as pre-activations too: the authors take no others."""
        x = F.max_pool2d(self.conv1(images), 3, 2, padding=1)
        features = [x]
        for stage in (self.stage2, self.stage3, self.stage4):
            x = stage(x)
            features.append(x)
        embedding = self.conv5(x).mean((2, 3))
        return Outputs(self.fc(embedding), embedding, features, features[1:])

    def final_modules(self) -> tuple[str, ...]:
        """The last stage, the 1 × 1 convolution and the classifier."""
        return ("stage4", "conv5", "fc")

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last stage and the 1 × 1 convolution; return the embedding."""
        return self.conv5(self.stage4(x)).mean((2, 3))  # type: ignore[no-any-return]


def build(*, classes: int, widths: Sequence[int]) -> ImageNetShuffleNetV2:
    """Build the network with so many channels in its stages and its last convolution."""
    return ImageNetShuffleNetV2(widths=widths, classes=classes)


def _stage(inputs: int, width: int, units: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, width, 2), *(Unit(width, width, 1) for _ in range(units - 1)))


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)]
