"""VGG networks for CIFAR (Simonyan & Zisserman, ICLR 2015) with batch norm and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_classifier, initialise_convolutions
from kdbench.models.outputs import Outputs


WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five blocks of 3 × 3 convolutions. Max-pooling halves the map after each of the first three.

    It does so once more before the last block where the map is 8 pixels high: in images of 64 to 71 pixels. The authors' code
    asks the image for exactly 64; of the map alone, from which ``finish`` must go on, both cannot be told apart.

    convolutions: how many in each block
    widths:       channels of each block
    """

    classifier_name = "classifier"
    stages = ("block1", "block2", "block3", "block4")

    def __init__(self, *, convolutions: Sequence[int], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.width = widths[-1]
        self.block0 = _block(3, widths[0], convolutions[0])
        self.block1 = _block(widths[0], widths[1], convolutions[1])
        self.block2 = _block(widths[1], widths[2], convolutions[2])
        self.block3 = _block(widths[2], widths[3], convolutions[3])
        self.block4 = _block(widths[3], widths[4], convolutions[4])
        self.classifier = nn.Linear(self.width, classes)
        self._initialise()

    def forward(self, images: Tensor) -> Outputs:
        """Return the maps after each block's last ReLU, and before it as pre-activations."""
        x = F.relu(self.block0(images), inplace=True)
        features, preactivations = [x], []
        for position, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            x = F.max_pool2d(x, 2) if position < 3 else _pooled_once_more(x)
            preactivations.append(block(x))
            x = F.relu(preactivations[-1])
            features.append(x)
        embedding = x.mean((2, 3))
        return Outputs(self.classifier(embedding), embedding, features, preactivations)

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last block; return the embedding."""
        return F.relu(self.block4(_pooled_once_more(x)), inplace=True).mean((2, 3))

    def _initialise(self) -> None:
        initialise_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        initialise_classifier(self.classifier)


def build(*, classes: int, convolutions: Sequence[int], widths: Sequence[int] = WIDTHS) -> VGG:
    """Build the network with so many convolutions, of so many channels, in each of its five blocks."""
    return VGG(convolutions=convolutions, widths=widths, classes=classes)


def _pooled_once_more(x: Tensor) -> Tensor:
    """The map [B, C, H, W] that enters the last block."""
    return F.max_pool2d(x, 2) if x.shape[2] == 64 // 8 else x


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU, …, without the last ReLU, which the caller applies."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers[:-1])
