"""EGA's head: a node embedding between a backbone and its classes (Ma et al., BMVC 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs


class NodeEmbedding(Backbone):
    """Backbone → Linear(D, width) → Linear(width, classes), nothing between, for teachers and students alike.

    It takes the backbone over: the backbone's own classifier is removed. ``embedding`` in the outputs is the node
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
        below: Outputs = self.backbone(images)
        embedding = self.node(below.embedding)
        return Outputs(self.fc(embedding), embedding, below.features, below.preactivations)

    def feature_modules(self) -> list[nn.Module]:
        """The backbone's."""
        return self.backbone.feature_modules()

    def top(self) -> tuple[str, ...]:
        """The backbone's, and both layers of its own."""
        return (*(f"backbone.{name}" for name in self.backbone.top()), "node", "fc")

    def finish(self, x: Tensor) -> Tensor:
        """Pass the backbone's last stage and the node embedding's layer."""
        return self.node(self.backbone.finish(x))  # type: ignore[no-any-return]

    def last_norms(self) -> list[nn.BatchNorm2d]:
        """The backbone's."""
        return self.backbone.last_norms()
