"""torchvision, also where its compiled operators cannot load."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


_FRAGMENTS: list[Any] = []
"""Operator declarations live as long as the object that made them."""


def import_torchvision() -> ModuleType:
    """Import torchvision.

    A torchvision built for CUDA cannot load its compiled operators beside a CPU build of torch, and its import then stops
    at the registration of meta kernels for operators that do not exist. Declaring the two that it registers at import
    lets everything written in Python work: data sets, transforms, network definitions. kdbench needs no compiled one.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        import torchvision
    return torchvision  # type: ignore[no-any-return]


def _declare_operators() -> None:
    import sys

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _FRAGMENTS.append(library)
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
