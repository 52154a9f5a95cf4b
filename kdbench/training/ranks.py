"""Several processes that train one job together, each on its device and with its portion of every batch.

All of them walk the same stream and hold the same weights. Each network sees a device's portion; terms see the whole batch,
which is gathered from all devices, on every device: so a loss needs to know nothing of it. Gradients are then averaged.

torch's DistributedDataParallel averages in the same way but does not fit here: it follows the backward pass of one network,
and what trains here is also a term's own parameters, or an adapter beside a network that has no backward pass at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from kdbench.data.batch import AugmentedViews, Batch, Portion
from kdbench.models.outputs import Outputs
from kdbench.training.environment import LostRank, out_of_memory
from kdbench.training.guard import Watch


Shown = TypeVar("Shown")
Word = TypeVar("Word", int, str)

TIMEOUT = timedelta(minutes=30)
"""How long one process waits for the others: as long as the first may take to test after an epoch."""

FAILURE_SECONDS = 60.0
"""How long after one process a run may fail in the others: they are at the same step."""


class Ranks:
    """This process, number ``rank`` of ``size`` that train together; by default it is alone.

    All of them call the same methods in the same order. Where one is gone the others raise LostRank.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self._groups: dict[int, Any] = {}

    @classmethod
    def join(cls, store: Any, rank: int, size: int, device: torch.device) -> Ranks:
        """Meet the others at torch's ``store``."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _in_company():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        return cls(rank, size, store)

    @staticmethod
    def leave() -> None:
        """Part from the others, if there are any."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether it is this process that reports and saves."""
        return self.rank == 0

    def portion(self, parts: Sequence[int]) -> Portion:
        """What it sees of each batch, which batch norm divides into ``parts``."""
        return Portion(self.rank, self.size, math.lcm(self.size, *parts))

    @contextmanager
    def after_the_first(self) -> Iterator[None]:
        """What is done here, the first process has done when the others begin: it may download, quarantine, archive."""
        if not self.leads:
            self.agrees(True)
        yield
        if self.leads:
            self.agrees(True)

    def agrees(self, flag: bool) -> bool:
        """The flag of the first process."""
        if self.size == 1:
            return flag
        told = torch.tensor(flag)
        with _in_company():
            dist.broadcast(told, 0)
        return bool(told)

    def exchange(self, words: list[Word]) -> list[list[Word]]:
        """The words of each process, those of the first one first."""
        everyones = [words] * self.size
        if self.size > 1:
            with _in_company():
                dist.all_gather_object(everyones, words)
        return everyones

    def add_up(self, numbers: list[int]) -> list[int]:
        """The sums of the numbers in the same place over all processes."""
        return [sum(each) for each in zip(*self.exchange(numbers), strict=True)]

    def confirm(self, failure: str, step: str) -> None:
        """Wait until what failed here at a ``step`` has failed in all processes. Raises LostRank where it has not.

        The others would then wait for this one within the step.
        """
        if self.size == 1:
            return
        self.store.add(step, 1)
        deadline = time.monotonic() + FAILURE_SECONDS
        while self.store.add(step, 0) < self.size:
            if time.monotonic() >= deadline:
                raise LostRank(f"{failure}, but not on each of {self.size} devices")
            time.sleep(0.1)

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Write the first process's values into these tensors."""
        if self.size > 1:
            with _in_company(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their means over all processes. They are the same in each, then, bit for bit."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _in_company():
            dist.all_reduce(flat)
        means = torch.split(flat / self.size, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [mean.view_as(to) for mean, to in zip(means, gradients, strict=True)])

    def total(self, tensor: Tensor, group: Any = None) -> Tensor:
        """The sum over the processes of a group, or over all."""
        total = tensor.clone()
        with _in_company():
            dist.all_reduce(total, group=group)
        return total

    def group(self, parts: int) -> Any:
        """The processes that share this one's part of a batch, where there are fewer parts than processes."""
        if parts not in self._groups:
            own = self.size // parts
            with _in_company():
                groups = [dist.new_group([*range(first, first + own)]) for first in range(0, self.size, own)]
            self._groups[parts] = groups[self.rank // own]
        return self._groups[parts]

    def collect(self, tensor: Tensor, size: int, group: Any = None) -> Tensor:
        """[B, …] of each of the ``size`` processes of a group, or of all, as [size · B, …]; without gradient."""
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        dense = (tensor.permute(0, 2, 3, 1) if last else tensor).contiguous()
        collected = dense.new_empty((size * len(dense), *dense.shape[1:]))
        with _in_company():
            _all_gather(collected.view(-1).view(torch.uint8), dense.view(-1).view(torch.uint8), group=group)
        return collected.permute(0, 3, 1, 2) if last else collected

    def gather(self, tensor: Tensor) -> Tensor:
        """[B / size, …] of each process as [B, …]. A gradient goes back to each, times ``size``, as it will be averaged."""
        gathered: Tensor = _Gather.apply(tensor, self)  # type: ignore[no-untyped-call]
        return gathered


ALONE = Ranks()

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""torch's own name for it since 2.13, and before."""


@contextmanager
def _in_company() -> Iterator[None]:
    """What torch says of other processes that are gone becomes LostRank."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise LostRank("the process on another device of this run has ended, or is not at the same step") from error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.own = ranks, len(tensor)
        return ranks.collect(tensor, ranks.size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start = ctx.ranks.rank * ctx.own
        return gradients[0][start : start + ctx.own] * ctx.ranks.size, None


class _Whole:
    """Shows what is there in portions as a whole. Each field is gathered when it is read first: feature maps are large."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name not in own.get("portion_of", ()):
            return object.__getattribute__(self, name)
        if name not in own["gathered"]:
            own["gathered"][name] = own["gather"](name, own["portion_of"][name])
        value = own["gathered"][name]
        return [*value] if isinstance(value, list) else value  # what is appended to it is not seen by others


class WholeBatch(_Whole, Batch):
    """A batch whose images are on several devices."""

    def __init__(self, batch: Batch, gather: Callable[[str, Any], Any]) -> None:
        vars(self).update(portion_of={**vars(batch), "portions": 1}, gathered={}, gather=gather)


class WholeViews(_Whole, AugmentedViews):
    """Transformed views that are on several devices."""

    def __init__(self, views: AugmentedViews, gather: Callable[[str, Any], Any]) -> None:
        vars(self).update(portion_of=vars(views), gathered={}, gather=gather)


class WholeOutputs(_Whole, Outputs):
    """What a network gives on several devices. As a tuple, too, it is the whole."""

    def __new__(cls, outputs: Outputs, gather: Callable[[str, Any], Any]) -> WholeOutputs:
        """Of the outputs for a device's portion."""
        whole = super().__new__(cls, *outputs)
        vars(whole).update(portion_of=outputs._asdict(), gathered={}, gather=gather)
        return whole

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]


def whole(name: str, shown: Shown, ranks: Ranks, watch: Watch) -> Shown:
    """A batch, or a network's outputs, gathered from all devices; what is gathered is watched from then on."""

    def gather(field: str, value: Any) -> Any:
        if isinstance(value, list):
            return [gather(f"{field}[{index}]", each) for index, each in enumerate(value)]
        if field == "views":
            return {kind: whole(f"{name}.views['{kind}']", views, ranks, watch) for kind, views in value.items()}
        if not isinstance(value, Tensor):
            return value
        gathered = ranks.gather(value)
        watch.add(f"{name}.{field}", gathered)
        return gathered

    kinds: dict[type, Any] = {Batch: WholeBatch, AugmentedViews: WholeViews, Outputs: WholeOutputs}
    return cast(Shown, kinds[type(shown)](shown, gather))
