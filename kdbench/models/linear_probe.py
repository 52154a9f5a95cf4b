"""A linear classifier on what a frozen backbone gives, or on its features alone."""

from __future__ import annotations

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
        """Return the classifier's logits and what it is given as embedding; there are no maps."""
        embedding = self.backbone(images).embedding if self.backbone else images
        return Outputs(self.fc(embedding), embedding, [], [])
