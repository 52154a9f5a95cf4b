"""One forward pass of a network, what each of its modules gives, and which of these are its feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import BadInput, reason_of


MOST_MAPS = 4
"""So many blocks of a network whose maps all have one side, such as a vision transformer, are stages."""


class Unfit(Exception):
    """A network does not take images of a size."""


def as_map(output: Any) -> Tensor:
    """A module's output as a feature map [B, C, H, W]. Raises BadInput for one that is none.

    Of N tokens [B, N, C] the last h · h, for the largest h, are the map; those before are class and register tokens. As
    images are square, a map [B, H, W, C] is told from [B, C, H, W] by the two equal sides.
    """
    if not isinstance(output, Tensor):
        raise BadInput(f"gives {kind_of(output)}, not a tensor")
    if output.dim() == 4:
        _, first, second, last = output.shape
        return output.permute(0, 3, 1, 2) if first == second != last else output
    if output.dim() == 3:
        side = math.isqrt(output.shape[1])
        if side:
            return output[:, -side * side :].transpose(1, 2).reshape(output.shape[0], -1, side, side)
    raise BadInput(f"gives {[*output.shape]}, which is no map [B, C, H, W] and no tokens [B, N, C]")


class ForwardPass:
    """One forward pass of one black image in eval mode, and what each module made of it."""

    def __init__(self, net: nn.Module, side: int) -> None:
        self.net = net
        self.images = torch.zeros(1, 3, side, side)
        self.outputs: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._began: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._clock = 0
        named = [(name, module) for name, module in net.named_modules() if name]
        hooks = [module.register_forward_hook(partial(self._note, name)) for name, module in named]
        hooks += [module.register_forward_pre_hook(partial(self._begin, name)) for name, module in named]
        modes = {module: module.training for module in net.modules()}
        net.eval()
        try:
            with torch.no_grad():
                self.output = net(self.images)
        except Exception as error:
            raise Unfit(reason_of(error)) from None
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes.items():
                module.training = mode

    def _begin(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._began[name] = self._clock = self._clock + 1

    def _note(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.outputs.pop(name, None)  # of a module that runs twice, the last pass counts
        self.outputs[name] = output
        self.inputs[name] = inputs[0] if inputs else None
        self._ended[name] = self._clock = self._clock + 1
        if isinstance(output, Tensor):
            self._versions[name] = output._version

    def written_over(self, name: str) -> bool:
        """Whether what follows a module changes its output in place."""
        output = self.outputs[name]
        return isinstance(output, Tensor) and output._version != self._versions[name]

    def maker_of(self, logits: Tensor) -> str | None:
        """The linear layer whose output the logits are; None if it is another."""
        linear = {name for name, module in self.net.named_modules() if isinstance(module, nn.Linear)}
        return next(
            (name for name, output in reversed(self.outputs.items()) if output is logits and name in linear), None
        )

    def default_maps(self) -> list[str]:
        """The stem's map and the last map of each side: the outputs of blocks, or of single layers where there are none.

        Where all blocks have one side, four of the longest row of them count, spread evenly, the last among them. What lies
        within a block is no block; a module that holds all others is none either.
        """
        sides = self._sides()
        parents = [name for name in sides if any(True for _ in self.net.get_submodule(name).children())]
        while parents:
            blocks = [name for name in parents if not self._within_block(name, parents)]
            stages = _last_of_each_side(blocks, sides)
            row = _longest_row(blocks)
            if len(stages) > 1 or len(row) > 1:
                break
            parents = [name for name in parents if name not in stages]
        else:
            row, stages = [], _last_of_each_side([name for name in sides if self._is_layer(name)], sides)
        first = stages[:1]
        if len(stages) == 1 and row:
            count = min(MOST_MAPS, len(row))
            stages = [row[len(row) * (place + 1) // count - 1] for place in range(count)]
            first = row[:1]
        before = [name for name in sides if first and self._ended[name] < self._began[first[0]]]
        return [*before[-1:], *stages]

    def _is_layer(self, name: str) -> bool:
        return not any(True for _ in self.net.get_submodule(name).children())

    def _within_block(self, name: str, blocks: Sequence[str]) -> bool:
        """Whether a module lies in one of the blocks that is more than a sequence of modules."""
        outer = name.rpartition(".")[0]
        while outer:
            if outer in blocks and not isinstance(self.net.get_submodule(outer), nn.Sequential):
                return True
            outer = outer.rpartition(".")[0]
        return False

    def _sides(self) -> dict[str, int]:
        """The modules whose outputs are maps, in the order in which they end, with the side; maps of one pixel if all are."""
        sides = {}
        for name, output in self.outputs.items():
            kind = type(self.net.get_submodule(name)).__name__
            if self.written_over(name) or ("Adaptive" in kind and "Pool" in kind):
                continue
            with suppress(BadInput):
                sides[name] = as_map(output).shape[3]
        return {name: side for name, side in sides.items() if side > 1} or sides


def _last_of_each_side(names: Sequence[str], sides: Mapping[str, int]) -> list[str]:
    """The modules that end last of their side, before those of smaller sides; ``names`` in the order of their ends."""
    stages: list[str] = []
    for name in reversed(names):
        if not stages or sides[name] > sides[stages[0]]:
            stages.insert(0, name)
    return stages


def _longest_row(names: Sequence[str]) -> list[str]:
    """The most modules that have one parent."""
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(name.rpartition(".")[0], []).append(name)
    return max(rows.values(), key=len, default=[])


def kind_of(value: Any) -> str:
    """What a value is, such as ``a tuple``."""
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"
