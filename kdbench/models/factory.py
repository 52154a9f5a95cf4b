"""A network by its name."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from kdbench.catalogue.networks import network
from kdbench.models.backbone import Backbone


def build(name: str, classes: int = 100) -> Backbone:
    """Build a network by name or alias, with fresh weights.

    Images [B, 3, H, W] of any size give Outputs with logits [B, classes]. An encoder has no use for ``classes`` and takes
    images of its own size alone. Raises BadInput for an unknown name.
    """
    known = network(name)
    builder = import_module(f"kdbench.models.{known.builder}")
    return cast(Backbone, builder.build(classes=classes, **known.arguments))
