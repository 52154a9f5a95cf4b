"""What keeps the loss terms of a run from changing what other runs and other terms see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, Batches, Copies
from kdbench.errors import BadInput
from kdbench.models.outputs import Outputs


SAMPLE = 1024
"""So many values of a tensor, or a few more, are compared where its version counter does not tell."""


class Watch:
    """Notices a write into tensors that others read, too.

    In-place operations raise a tensor's version counter, which costs nothing to read. With ``values``, which foreign code
    calls for, evenly spaced values are compared as well: writes through ``.data`` or ``.numpy()`` raise no counter. From
    number ``start`` on every so many are taken; successive starts reach all of them in the end.
    """

    def __init__(self, *, values: bool, start: int) -> None:
        self.values, self.start = values, start
        self.named: list[tuple[str, Tensor]] = []
        self.marks: list[tuple[int, int]] = []
        self.samples: list[Tensor] = []

    def add(self, name: str, shown: object) -> None:
        """Watch all tensors of what is shown under this name, as they are now."""
        found = list(_tensors(name, shown))
        self.named += found
        self.marks += [_mark(each) for _, each in found]
        if self.values:
            self.samples += [self._sample(each).clone() for _, each in found]

    def check(self, culprit: str) -> None:
        """Raise BadInput, which names the culprit, where a tensor is not what it was."""
        changed = [name for mark, (name, each) in zip(self.marks, self.named, strict=True) if mark != _mark(each)]
        if self.values and not changed:
            seen = zip(self.samples, self.named, strict=True)
            changed = [name for before, (name, each) in seen if not torch.equal(before, self._sample(each))]
        if changed:
            raise BadInput(
                f"{culprit} writes into {changed[0]}, which others read, too: it must leave what it is shown as it is. "
                "Let it work on a copy (.clone()), without in-place operations"
            )

    def _sample(self, tensor: Tensor) -> Tensor:
        """Some of the values, as integers, among which nan equals itself."""
        tensor = tensor.detach()
        dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
        memory = tensor if dense else tensor.reshape(-1)
        step = max(1, tensor.numel() // SAMPLE)
        first = self.start % step
        count = -(-(tensor.numel() - first) // step)
        return memory.as_strided((count,), (step,), memory.storage_offset() + first).view(_INTEGERS[tensor.itemsize])


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _mark(tensor: Tensor) -> tuple[int, int]:
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _tensors(name: str, shown: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(shown, Tensor):
        yield name, shown
    elif isinstance(shown, Outputs):
        for field, value in zip(shown._fields, shown, strict=True):
            yield from _tensors(f"{name}.{field}", value)
    elif isinstance(shown, Sequence):
        for index, value in enumerate(shown):
            yield from _tensors(f"{name}[{index}]", value)
    elif isinstance(shown, Mapping):
        for key, value in shown.items():
            yield from _tensors(f"{name}['{key}']", value)
    elif isinstance(shown, Batch | Copies):
        for each in fields(shown):
            yield from _tensors(f"{name}.{each.name}", getattr(shown, each.name))


def aliased(shown: Shown) -> Shown:
    """The same values in tensors and lists of their own, so that others do not get what is assigned to these."""
    return cast(Shown, _aliased(shown))


Shown = TypeVar("Shown", Outputs, Batch)


def _aliased(shown: Any) -> Any:
    if isinstance(shown, Tensor):
        return shown.detach()
    if isinstance(shown, Outputs):
        return Outputs(*map(_aliased, shown))
    if isinstance(shown, list):
        return [each.detach() for each in shown]
    if isinstance(shown, Mapping):
        return MappingProxyType({key: _aliased(each) for key, each in shown.items()})
    if isinstance(shown, Batch | Copies):
        return type(shown)(**{each.name: _aliased(getattr(shown, each.name)) for each in fields(shown)})
    return shown


def relisted(outputs: Outputs) -> Outputs:
    """The same tensors, with lists of their own: what is appended to these is not seen by others."""
    return outputs._replace(features=[*outputs.features], preactivations=[*outputs.preactivations])


class Replay:
    """The batches of a stream, without the data set that they are made of."""

    def __init__(self, stream: Batches) -> None:
        self._stream = stream

    def __len__(self) -> int:
        """Images per epoch."""
        return len(self._stream)

    def epoch(
        self, epoch: int, *, taught: bool = True, transforms: Sequence[str] = (), first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch."""
        return self._stream.epoch(epoch, taught=taught, transforms=transforms, first=first)


def plugged_in(modules: nn.Module) -> bool:
    """Whether code that is neither kdbench's nor torch's is among the modules."""
    return any(type(module).__module__.partition(".")[0] not in ("kdbench", "torch") for module in modules.modules())


class Settings:
    """torch's settings of this process, which all runs of a worker share, as they are when this is made."""

    def __init__(self) -> None:
        self.found = _read_settings()

    def put_back(self) -> list[str]:
        """Undo what was changed since; returns the names of the settings."""
        now = _read_settings()
        if now == self.found:
            return []
        changed = [name for name, before, after in zip(_SETTERS, self.found, now, strict=True) if before != after]
        for (name, put), value in zip(_SETTERS.items(), self.found, strict=True):
            if name in changed:
                put(value)
        return changed


def _read_settings() -> tuple[Any, ...]:
    cudnn, made = torch.backends.cudnn, torch.empty(0)
    return (
        made.device,
        made.dtype,
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.is_anomaly_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.backends.mkldnn.enabled,
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
    )


def _set_cudnn(flags: tuple[bool, ...]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = flags


_SETTERS: dict[str, Callable[[Any], object]] = {
    "default device": lambda device: torch.set_default_device(None),
    "default dtype": torch.set_default_dtype,
    "gradient mode": torch.set_grad_enabled,
    "number of threads": torch.set_num_threads,
    "anomaly detection": torch.autograd.set_detect_anomaly,
    "deterministic algorithms": torch.use_deterministic_algorithms,
    "float32 matmul precision": torch.set_float32_matmul_precision,
    "autocast on the CPU": lambda on: torch.set_autocast_enabled("cpu", on),
    "autocast dtype on the CPU": lambda dtype: torch.set_autocast_dtype("cpu", dtype),
    "autocast on the GPU": lambda on: torch.set_autocast_enabled("cuda", on),
    "autocast dtype on the GPU": lambda dtype: torch.set_autocast_dtype("cuda", dtype),
    "mkldnn": lambda on: setattr(torch.backends.mkldnn, "enabled", on),
    "cudnn": _set_cudnn,
}
"""How each of the settings is put back, in the order in which they are read."""
