"""What the networks of this package have in common."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdbench.models.outputs import Outputs


class Backbone(nn.Module):
    """A network whose forward takes images [B, 3, H, W] and gives Outputs.

    classifier_name: the attribute that holds the classifier; None for encoders that have none
    width:           D, the width of the embedding
    """

    classifier_name: ClassVar[str | None] = "fc"
    width: int

    def forward(self, images: Tensor) -> Outputs:
        """Return logits, embedding and feature maps."""
        raise NotImplementedError

    def remove_classifier(self) -> None:
        """Delete the classifier's parameters; from then on the logits are the embedding."""
        if self.classifier_name is not None:
            setattr(self, self.classifier_name, nn.Identity())


def initialise_convolutions(net: nn.Module) -> None:
    """Draw all convolutions' weights from He's normal distribution over the fan-out (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
