"""CLIP's image encoders (Radford et al., ICML 2021): open_clip's vision towers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from kdbench.data.preprocess import import_torchvision
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone, run_residual_stages
from kdbench.models.outputs import Outputs


class ClipEncoder(Backbone):
    """open_clip's vision tower under ``visual``, and nothing else: the names of its tensors are those of a whole CLIP.

    It takes images [B, 3, 224, 224]. The embedding is what open_clip's ``encode_image`` gives, [B, 512] ([B, 1024] for
    RN50), not normalised. There is no classifier: the logits are the embedding. The ResNets expose the pooled stem and
    four stages, the vision transformers no maps.

    size: the side of the images, in pixels
    """

    classifier_name = None
    prefix: ClassVar[str] = "visual."

    def __init__(self, tower: nn.Module, *, width: int, size: int) -> None:
        super().__init__()
        self.width = width
        self.size = size
        self.visual = tower

    def forward(self, images: Tensor) -> Outputs:
        """Return the embedding, and a ResNet's maps after each stage's last ReLU and before it."""
        if images.shape[2:] != (self.size, self.size):
            height, width = images.shape[2:]
            raise BadInput(f"a CLIP encoder takes images of {self.size} × {self.size} pixels, not {height} × {width}")
        features, preactivations, embedding = self._run(images)
        return Outputs(embedding, embedding, features, preactivations)

    def _run(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        return [], [], self.visual(images)


class ClipResNet(ClipEncoder):
    """A tower of bottlenecks, whose last ReLUs are taken out of the blocks and applied here."""

    stages = ("visual.layer1", "visual.layer2", "visual.layer3", "visual.layer4")

    def __init__(self, tower: nn.Module, *, width: int, size: int) -> None:
        super().__init__(tower, width=width, size=size)
        for module in tower.modules():
            if hasattr(module, "act3") and module is not tower:
                module.act3 = nn.Identity()

    def _run(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        tower: Any = self.visual
        stages = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
        features, preactivations = run_residual_stages(stages, tower.stem(images))
        return features, preactivations, tower.attnpool(features[-1])


def build(*, classes: int, model: str) -> ClipEncoder:
    """Build the vision tower of one of open_clip's models with fresh weights. An encoder has no use for ``classes``."""
    import_torchvision()  # open_clip imports it, too, and cannot where its compiled operators are missing
    import open_clip
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import QuickGELU, VisionTransformer

    config = open_clip.get_model_config(model)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    width, size = config["embed_dim"], vision.image_size
    if isinstance(vision.layers, list):
        heads = vision.width * 32 // vision.head_width
        residual = ModifiedResNet(vision.layers, width, heads, image_size=size, width=vision.width)
        return ClipResNet(residual, width=width, size=size)
    transformer = VisionTransformer(
        image_size=size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_ratio=vision.mlp_ratio,
        output_dim=width,
        act_layer=QuickGELU if config["quick_gelu"] else nn.GELU,
    )
    return ClipEncoder(transformer, width=width, size=size)
