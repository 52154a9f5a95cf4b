"""The last stage of a network by itself."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kdbench.models.backbone import Backbone


class Branch(nn.Module):
    """What a network has behind its second-to-last exposed map, classifier included; its other modules are dropped.

    It takes the network over and gives the logits [B, K] for such maps [B, C, H, W], which it leaves as they are.
    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        _drop_all_but(network.top(), network, "")
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        embedding = self.network.finish(x)
        return cast(Tensor, self.network.get_submodule(self.network.classifier_name or "")(embedding))


def _drop_all_but(kept: tuple[str, ...], module: nn.Module, prefix: str) -> None:
    """Put an empty module in the place of each that is neither named nor contains, or lies in, a named one."""
    for name, child in list(module.named_children()):
        path = prefix + name
        if path in kept:
            continue
        if any(each.startswith(f"{path}.") for each in kept):
            _drop_all_but(kept, child, f"{path}.")
        else:
            setattr(module, name, nn.Identity())
