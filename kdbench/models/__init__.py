"""The networks. ``build`` makes one by name; its forward gives ``Outputs``."""

from kdbench.models.build import build
from kdbench.models.checkpoints import load_checkpoint
from kdbench.models.outputs import Outputs, Shapes


__all__ = ["Outputs", "Shapes", "build", "load_checkpoint"]
