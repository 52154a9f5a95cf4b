"""SGD as the papers use it: one parameter group, weight decay on everything, stepwise decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdbench.suite.specs import Recipe


def make_optimiser(parameters: Sequence[nn.Parameter], recipe: Recipe) -> torch.optim.SGD:
    """SGD under a recipe. The fused form is one kernel for all parameters."""
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr
