"""VGG networks for CIFAR (Simonyan & Zisserman, ICLR 2015) with batch norm and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions
from kdbench.models.outputs import Outputs


WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five blocks of 3 × 3 convolutions. Max-pooling halves the map after each of the first three.

    convolutions: how many in each block
    """

    classifier_name = "classifier"

    def __init__(self, *, convolutions: Sequence[int], classes: int) -> None:
        super().__init__()
        self.width = WIDTHS[-1]
        self.block0 = _block(3, WIDTHS[0], convolutions[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convolutions[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convolutions[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convolutions[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convolutions[4])
        self.classifier = nn.Linear(self.width, classes)
        self._initialise()

    def forward(self, images: Tensor) -> Outputs:
        """Return the maps after each block's last ReLU, and before it as pre-activations."""
        x = F.relu(self.block0(images), inplace=True)
        features, preactivations = [x], []
        for position, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            if (
                position < 3 or images.shape[2] == 64
            ):  # the authors' rule: one more pooling for images 64 pixels high only
                x = F.max_pool2d(x, 2)
            preactivations.append(block(x))
            x = F.relu(preactivations[-1])
            features.append(x)
        embedding = x.mean((2, 3))
        return Outputs(self.classifier(embedding), embedding, features, preactivations)

    def _initialise(self) -> None:
        initialise_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)


def build(*, classes: int, convolutions: Sequence[int]) -> VGG:
    """Build the network with so many convolutions in each of its five blocks."""
    return VGG(convolutions=convolutions, classes=classes)


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU, …, without the last ReLU, which the caller applies."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers[:-1])
