"""MobileNetV2 for CIFAR (Sandler et al., CVPR 2018), with ReLU in place of ReLU6."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_classifier, initialise_convolutions
from kdbench.models.outputs import Outputs


STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels before the width multiplier, units, stride of the first unit."""
EXPOSED = (1, 2, 4, 6)
"""The stages whose maps are f1 … f4."""
WIDTH = 1280
"""Channels of the last convolution, whatever the multiplier."""


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow without activation; a shortcut where the map keeps its shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_convolution(inputs, inner, 1),
            *_convolution(inner, inner, 3, stride, groups=inner),
            *_convolution(inner, outputs, 1)[:-1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's map, which has both signs."""
        narrow: Tensor = self.conv(x)
        return narrow.add_(x) if self.has_shortcut else narrow


class MobileNetV2(Backbone):
    """A stem at 1/2 of the image's size, seven stages of inverted residuals down to 1/16, and a 1 × 1 convolution.

    multiplier: scales all widths but the last convolution's; the products are truncated, not rounded to eights
    """

    classifier_name = "classifier"
    stages = tuple(f"blocks.{position}" for position in EXPOSED)
    tail_modules = ("conv2",)

    def __init__(self, *, multiplier: float, classes: int) -> None:
        super().__init__()
        self.width = WIDTH
        channels = int(32 * multiplier)
        self.conv1 = nn.Sequential(*_convolution(3, channels, 3, stride=2))
        stages = []
        for expansion, width, units, stride in STAGES:
            outputs = int(width * multiplier)
            rest = [InvertedResidual(outputs, outputs, 1, expansion) for _ in range(units - 1)]
            stages.append(nn.Sequential(InvertedResidual(channels, outputs, stride, expansion), *rest))
            channels = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_convolution(channels, WIDTH, 1))
        head = nn.Linear(WIDTH, classes)
        self.classifier = nn.Sequential(head)
        initialise_convolutions(self)
        initialise_classifier(head)

    def forward(self, images: Tensor) -> Outputs:
        """Return the stem's map and four of the stages'. These end without activation: pre-activations are the same."""
        x = self.conv1(images)
        features = [x]
        for position, stage in enumerate(self.blocks):
            x = stage(x)
            if position in EXPOSED:
                features.append(x)
        embedding = self.conv2(x).mean((2, 3))
        return Outputs(self.classifier(embedding), embedding, features, features[1:])

    def final_modules(self) -> tuple[str, ...]:
        """The last two stages, of which the first is not exposed, the 1 × 1 convolution and the classifier."""
        return ("blocks.5", *super().final_modules())

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last two stages and the 1 × 1 convolution; return the embedding."""
        return self.conv2(self.blocks[-2:](x)).mean((2, 3))  # type: ignore[no-any-return]


def build(*, classes: int, multiplier: float) -> MobileNetV2:
    """Build the network with all widths but the last one scaled."""
    return MobileNetV2(multiplier=multiplier, classes=classes)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
