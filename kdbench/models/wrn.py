"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016), without dropout."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbone import Backbone, initialise_convolutions
from kdbench.models.outputs import Outputs


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 × 3 convolutions, and a shortcut.

    A block's first batch norm also gives the pre-activation of the group before it. The caller therefore applies it, so
    that no batch norm runs twice, and hands over its output after ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return the residual sum. x: the block's input; activated: relu(bn1(x))."""
        branch = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(branch).add_(shortcut)  # type: ignore[no-any-return]


class Group(nn.Module):
    """Blocks of one width; the first one carries the stride."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.ModuleList([PreActivationBlock(inputs, outputs, stride), *rest])

    def normalise(self, x: Tensor) -> Tensor:
        """The first block's first batch norm."""
        return cast(PreActivationBlock, self.layer[0]).bn1(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, normalised: Tensor) -> Tensor:
        """Return the last residual sum. x: the group's input; normalised: normalise(x), which stays as it is."""
        first, *rest = cast(list[PreActivationBlock], list(self.layer))
        x = first(x, F.relu(normalised))
        for block in rest:
            x = block(x, F.relu(block.bn1(x), inplace=True))
        return x


class WideResNet(Backbone):
    """A stem and three groups of ``blocks`` blocks, at 1, 1/2 and 1/4 of the image's size.

    The authors' code passes the batch norm behind a group a second time where it is asked for pre-activations, which moves
    running statistics by 0.19 of the way in a step; here each batch norm runs once, and they move by 0.1.

    factor: how many times wider than 16, 32 and 64 channels
    """

    stages = ("block1", "block2", "block3")
    tail_modules = ("bn1",)

    def __init__(self, *, blocks: int, factor: int, classes: int) -> None:
        super().__init__()
        self.width = 64 * factor
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Group(16, 16 * factor, blocks, stride=1)
        self.block2 = Group(16 * factor, 32 * factor, blocks, stride=2)
        self.block3 = Group(32 * factor, 64 * factor, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.fc = nn.Linear(64 * factor, classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Outputs:
        """Return the residual sums that leave each group; pre-activations are the following batch norm's outputs."""
        x = self.conv1(images)
        features, normalised = [x], []
        for group in (self.block1, self.block2, self.block3):
            normalised.append(group.normalise(x))
            x = group(x, normalised[-1])
            features.append(x)
        normalised.append(self.bn1(x))
        embedding = F.relu(normalised[-1]).mean((2, 3))
        return Outputs(self.fc(embedding), embedding, features, normalised[1:])

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the last group and the batch norm behind it; return the embedding."""
        x = self.block3(x, self.block3.normalise(x))
        return F.relu(self.bn1(x), inplace=True).mean((2, 3))


def build(*, classes: int, depth: int, factor: int) -> WideResNet:
    """Build the network of ``depth`` = 6n + 4 layers, n blocks per group, ``factor`` times as wide as the plain one."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} is not 6n + 4")
    return WideResNet(blocks=blocks, factor=factor, classes=classes)
