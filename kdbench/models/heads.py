"""Heads and branches on top of a backbone: linear probe, node embedding, a copy of the last stages."""

from __future__ import annotations

from copy import copy
from typing import cast

from torch import Tensor, nn

from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs


class LinearProbe(Backbone):
    """Linear(width, classes) on a frozen backbone's embedding; without a backbone, on features [B, width]."""

    def __init__(self, width: int, classes: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.width = width
        self.backbone = backbone.requires_grad_(False) if backbone else None
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Outputs:
        """Return the logits, and the classifier's input as the embedding; there are no maps."""
        embedding = self.backbone(images).embedding if self.backbone else images
        return Outputs(self.fc(embedding), embedding, [], [])


class Branch(nn.Module):
    """The part of a network after its second-to-last exposed map, classifier included; its other modules are dropped.

    It takes ownership of the network, and maps such feature maps [B, C, H, W], unchanged, to logits [B, K].
    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        _drop_all_but(network.final_modules(), network, "")
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        embedding = self.network.embed_from(x)
        return cast(Tensor, self.network.get_submodule(self.network.classifier_name or "")(embedding))


def _drop_all_but(kept: tuple[str, ...], module: nn.Module, prefix: str) -> None:
    """Replace each module by the identity unless it is, contains or lies in a named one."""
    for name, child in list(module.named_children()):
        path = prefix + name
        if path in kept:
            continue
        if any(each.startswith(f"{path}.") for each in kept):
            _drop_all_but(kept, child, f"{path}.")
        else:
            setattr(module, name, nn.Identity())


class NodeEmbedding(Backbone):
    """Backbone → Linear(D, width) → Linear(width, classes), nothing between, for teachers and students alike.

    It takes ownership of the backbone and removes its classifier. ``embedding`` in the outputs is the node
    embedding [B, width]; feature maps and pre-activations are the backbone's.
    """

    def __init__(self, backbone: Backbone, *, classes: int, width: int = 256) -> None:
        super().__init__()
        backbone.remove_classifier()
        self.width = width
        self.backbone = backbone
        self.node = nn.Linear(backbone.width, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Outputs:
        """Return the head's logits and the node embedding with the backbone's maps."""
        return self.extend(self.backbone(images))

    def extend(self, below: Outputs) -> Outputs:
        """The same, from what the backbone gives."""
        embedding = self.node(below.embedding)
        return Outputs(self.fc(embedding), embedding, below.features, below.preactivations)

    def on(self, backbone: Backbone) -> NodeEmbedding:
        """The same two layers on another backbone: what one learns, the other has learned."""
        other = copy(self)
        other._modules = {**self._modules, "backbone": backbone}
        return other

    def feature_modules(self) -> list[nn.Module]:
        """The backbone's."""
        return self.backbone.feature_modules()

    def final_modules(self) -> tuple[str, ...]:
        """The backbone's, and both layers of its own."""
        return (*(f"backbone.{name}" for name in self.backbone.final_modules()), "node", "fc")

    def embed_from(self, x: Tensor) -> Tensor:
        """Pass the backbone's last stage and the node embedding's layer."""
        return self.node(self.backbone.embed_from(x))  # type: ignore[no-any-return]

    def last_norms(self) -> list[nn.BatchNorm2d]:
        """The backbone's."""
        return self.backbone.last_norms()
