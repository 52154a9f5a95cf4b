"""ResNet-18 and ResNet-34 for ImageNet (He et al., CVPR 2016), under torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions, run_residual_stages
from kdbench.models.outputs import Outputs
from kdbench.models.resnet import stage


class ImageNetResNet(Backbone):
    """A 7 × 7 stem with max-pooling and four stages of basic blocks, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

    blocks: how many in each stage
    """

    def __init__(self, *, blocks: Sequence[int], classes: int) -> None:
        super().__init__()
        self.width = 512
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, blocks[0], stride=1)
        self.layer2 = stage(64, 128, blocks[1], stride=2)
        self.layer3 = stage(128, 256, blocks[2], stride=2)
        self.layer4 = stage(256, 512, blocks[3], stride=2)
        self.fc = nn.Linear(self.width, classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Outputs:
        """Return the pooled stem, the maps after each stage's last ReLU, and before it as pre-activations."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        features, preactivations = run_residual_stages((self.layer1, self.layer2, self.layer3, self.layer4), x)
        embedding = features[-1].mean((2, 3))
        return Outputs(self.fc(embedding), embedding, features, preactivations)


def build(*, classes: int, blocks: Sequence[int]) -> ImageNetResNet:
    """Build the network with so many basic blocks in each of its four stages."""
    return ImageNetResNet(blocks=blocks, classes=classes)
