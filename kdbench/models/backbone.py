"""The base class of the networks, and helpers that several of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import BadInput
from kdbench.models.outputs import Outputs


class Backbone(nn.Module):
    """A network whose forward takes images [B, 3, H, W] and gives Outputs.

    A subclass has ``forward``, ``width``, ``stages`` and ``embed_from``, and names modules on shortcuts "shortcut" or
    "downsample".

    classifier_name: the path of the classifier's module; None for networks that have none
    prefix:          what the names of its tensors begin with, and those in its makers' files do not
    stages:          where the modules are that make f1 … fL
    tail_modules:    the attributes between the last exposed map and the classifier
    module_aliases:  names that other authors give to modules of the same network → its own
    width:           D, the width of the embedding
    """

    classifier_name: str | None = "fc"
    prefix: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...]] = ()
    tail_modules: ClassVar[tuple[str, ...]] = ()
    module_aliases: ClassVar[Mapping[str, str]] = {}
    width: int

    def forward(self, images: Tensor) -> Outputs:
        """Return logits, embedding and feature maps."""
        raise NotImplementedError

    def feature_modules(self) -> list[nn.Module]:
        """The modules that compute the exposed maps: all but the classifier and those between it and the last map."""
        rest = (self.classifier_name, *self.tail_modules)
        return [module for name, module in self.named_children() if name not in rest]

    def final_modules(self) -> tuple[str, ...]:
        """The names of all modules behind the second-to-last exposed map, the classifier's among them."""
        return (self.stages[-1], *self.tail_modules, *filter(None, [self.classifier_name]))

    def embed_from(self, x: Tensor) -> Tensor:
        """The embedding [B, D] that follows from the second-to-last exposed map [B, C, H, W]; x stays as it is."""
        raise NotImplementedError

    def last_norms(self) -> list[nn.BatchNorm2d]:
        """Each stage's last batch norm that is not on a shortcut. Raises BadInput for a network that names no stages."""
        if not self.stages:
            raise BadInput(f"{type(self).__name__} does not say which batch norms its feature maps come from")
        return [_last_norm(self.get_submodule(stage)) for stage in self.stages]

    def remove_classifier(self) -> None:
        """Delete the classifier's parameters; from then on the logits are the embedding."""
        if self.classifier_name is not None:
            self.set_submodule(self.classifier_name, nn.Identity())


def _last_norm(stage: nn.Module) -> nn.BatchNorm2d:
    path = {name: module for name, module in stage.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return [norm for name, norm in path.items() if "shortcut" not in name and "downsample" not in name][-1]


def run_residual_stages(stages: Iterable[nn.Sequential], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return x and each stage's last map after its ReLU, and the residual sums before these ReLUs.

    stages: sequences of blocks that leave their last ReLU to this function and give a map of their own, never their input
    """
    features, sums = [x], []
    for stage in stages:
        *inner, last = stage
        for block in inner:
            x = F.relu(block(x), inplace=True)
        sums.append(last(x))
        x = F.relu(sums[-1])
        features.append(x)
    return features, sums


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of as many groups, as torch's channel_shuffle does, in channels-last memory on any device.

    torch's own gives contiguous memory on a GPU, and the next convolution would convert it back.
    """
    batch, channels, height, width = x.shape
    grouped = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
    return grouped.transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)


def initialise_convolutions(net: nn.Module) -> None:
    """Draw all convolutions' weights from He's normal distribution over the fan-out (He et al., ICCV 2015).

    On the device `meta` nothing is drawn: torch would import torch._dynamo for that, which takes over a second.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialise_classifier(layer: nn.Linear) -> None:
    """Draw the weights from a normal distribution with standard deviation 0.01, but on `meta`; the biases are 0."""
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
