"""A GPU that is not there: its tensors lie in the CPU's memory and say that they are on the device ``fakegpu``.

So a test needs no GPU to find what a GPU would refuse or be slowed by:

- an operation on tensors of two devices raises, as on CUDA;
- a ``Recorder`` notes every operation that is launched, every copy between the devices, and whatever would make the host
  wait for the device, each with the line that asks for it;
- a ``Graph`` captures operations and replays them on the same memory, as a CUDA graph does.

Values are the CPU's, bit for bit, random numbers included: they come from the CPU's default generator. The dispatcher's
operations are counted, not kernels: a fused SGD step counts as one. Under autocast nothing is cast.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map


NAME = "fakegpu"
MISSING = "this torch cannot have a device written in Python (_setup_privateuseone_for_python_backend)"
INSTALLABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

aten = torch.ops.aten
ASKING = {
    aten._local_scalar_dense.default,
    aten._linalg_check_errors.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
"""Their result, or its size, is known to the host only when the device has computed it."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MOVING = {aten.copy_.default, aten._to_copy.default}
NOT_LAUNCHED = {
    aten._reshape_alias.default,
    aten._unsafe_view.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.is_pinned.default,
    aten.lift_fresh.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
"""Beside views, what launches nothing: memory is reserved, or the same memory gets another shape."""

WRITTEN = {aten.native_batch_norm.default: ("running_mean", "running_var")}
"""What is written to beside what an operation's schema says."""

_LIBRARIES: list[torch.library.Library] = []
_RECORDERS: list[Recorder] = []
_CAPTURING: list[Graph] = []


def install() -> torch.device:
    """The device, which this process has from now on."""
    if not _LIBRARIES:
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=DeviceModule())
        fallback, copies = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        # what makes a tensor of no other, as torch.zeros(…, device=…) does
        fallback.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
        # torch.tensor(…, device=…) copies behind __torch_dispatch__
        copies.impl("copy_", lambda *args, **kwargs: _run(aten.copy_.default, args, kwargs), "PrivateUse1")
        torch.serialization.register_package(1, lambda storage: None, _loaded)
        _LIBRARIES.extend((fallback, copies))
    return torch.device(NAME, 0)


class DeviceTensor(torch.Tensor):
    """A tensor on the device. ``memory``, a tensor on the CPU, holds its values."""

    memory: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, memory: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, memory.size(), strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    def __repr__(self) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (self.cpu(), self.dtype, NAME, self.requires_grad)

    @classmethod
    def __torch_dispatch__(
        cls, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class Recorder:
    """What the host asks of the device within ``with Recorder() as found: …``.

    ``operations`` counts what is launched, by name; ``copies`` those from one device to the other, and ``waits`` what makes
    the host wait, both by name and place.
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Recorder:
        _RECORDERS.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _RECORDERS.remove(self)


class Graph:
    """Operations on fixed memory, with all numbers as they were, that can be launched again without Python.

    As with a CUDA graph, capturing changes nothing: memory from before is as it was, what was made meanwhile holds no
    result before the first replay (here: nan), and a replay draws the random numbers of its own moment. What makes the host
    wait cannot be captured and raises.
    """

    def __init__(self) -> None:
        self._tape: list[tuple[OpOverload, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._random = torch.get_rng_state()

    def __len__(self) -> int:
        """Operations of a replay."""
        return len(self._tape)

    def capture_begin(self, *options: object, **more: object) -> None:
        self._random = torch.get_rng_state()
        _CAPTURING.append(self)

    def capture_end(self) -> None:
        _CAPTURING.remove(self)
        torch.set_rng_state(self._random)
        for memory, value in self._before.values():
            memory.copy_(value)
        self._before.clear()
        for memory in self._made.values():
            if memory.is_floating_point():
                memory.fill_(torch.nan)

    def replay(self) -> None:
        """Launch all operations again."""
        for operation, args, kwargs, results in self._tape:
            found = [each for each in tree_leaves(operation(*args, **kwargs)) if isinstance(each, Tensor)]
            for new, old in zip(found, results, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)

    def about_to_launch(self, operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what is in memory from before the capture that an operation will write to."""
        arguments = operation._schema.arguments
        given = [*zip(arguments, args, strict=False), *((each, kwargs.get(each.name)) for each in arguments)]
        hidden = WRITTEN.get(operation, ())
        written = [v for each, v in given if each.name in hidden or (each.alias_info and each.alias_info.is_write)]
        for tensor in tree_leaves(written):
            if isinstance(tensor, Tensor) and _place(tensor) not in {*self._made, *self._before}:
                whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
                self._before[_place(tensor)] = whole, whole.clone()

    def launched(
        self, operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, *, work: bool
    ) -> None:
        """Put an operation on the tape, unless its result is a view of what it was given."""
        given = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        new = {_place(each): each for each in results if _place(each) not in given}
        self._made |= new
        if work and (new or operation._schema.is_mutable):
            self._tape.append((operation, args, kwargs, results))


class DeviceModule:
    """``torch.fakegpu``, with the names that ``torch.cuda`` has for the same."""

    CUDAGraph = Graph

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """The device draws from the CPU's default generator, which has its seed already."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None:
        _count("waits", "synchronize")

    def graph_pool_handle(self) -> int:
        return 0

    @contextmanager
    def graph(self, graph: Graph, **options: object) -> Iterator[None]:
        graph.capture_begin()
        try:
            yield
        finally:
            graph.capture_end()


@dataclass
class _Call:
    """An operation with its arguments, and the tensors among these that are on the device and on the CPU."""

    operation: OpOverload
    args: Sequence[Any]
    kwargs: dict[str, Any]
    here: list[Tensor] = field(default_factory=list)
    there: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for leaf in tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, Tensor):
                (self.here if isinstance(leaf, DeviceTensor) else self.there).append(leaf)

    @property
    def on_device(self) -> bool:
        """Whether the result is on the device."""
        if self.operation is not aten.copy_.default and self.kwargs.get("device") is not None:
            return torch.device(self.kwargs["device"]).type == NAME
        return isinstance(self.args[0], DeviceTensor) if self.operation is aten.copy_.default else bool(self.here)

    @property
    def copies(self) -> str:
        """Between which devices it copies, or ""."""
        crosses = bool(self.there) if self.on_device else bool(self.here)
        if self.operation not in MOVING or not crosses:
            return ""
        return "host to device" if self.on_device else "device to host"

    @property
    def mixes(self) -> bool:
        """Whether it is refused for tensors of both devices. Single numbers on the CPU pass for those of Python."""
        if not (self.here and self.there) or self.operation in MOVING | INDEXING:
            return False
        return torch.Tag.pointwise not in self.operation.tags or any(tensor.dim() for tensor in self.there)

    @property
    def waits(self) -> str:
        """Why the host waits for the device, or ""."""
        if copies := self.copies:
            async_copy = self.args[2:3] or (self.kwargs.get("non_blocking"),)
            return "" if async_copy[0] else f"blocking copy, {copies}"
        if not self.here:
            return ""
        if self.operation in INDEXING:
            if self.there:
                return f"{self.operation} by indices on the CPU"
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in self.args[1]):
                return f"{self.operation} by a mask"
        unsized = self.operation is aten.repeat_interleave.Tensor and self.kwargs.get("output_size") is None
        return str(self.operation) if self.operation in ASKING or unsized else ""

    @property
    def launches(self) -> bool:
        """Whether the device has something to do. Views are no work."""
        return not self.operation.is_view and self.operation not in NOT_LAUNCHED


def _run(operation: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Do an operation in the CPU's memory, and record what it would ask of a GPU."""
    call = _Call(operation, args, kwargs)
    if call.mixes:
        found = ", ".join(f"{[*tensor.shape]} on {tensor.device.type}" for tensor in (*call.here, *call.there))
        raise RuntimeError(f"{operation} of tensors on two devices, {found}, at {_caller()}")
    if copies := call.copies:
        _count("copies", copies)
    if waits := call.waits:
        _count("waits", waits)
        if _CAPTURING:
            raise RuntimeError(f"{waits} while a graph is captured, at {_caller()}")
    on_device = call.on_device
    if (on_device or call.here) and call.launches:
        for recorder in _RECORDERS:
            recorder.operations[str(operation)] += 1
    kwargs = {name: "cpu" if name == "device" else value for name, value in kwargs.items() if name != "pin_memory"}
    memory, named = tree_map(_memory, tuple(args)), tree_map(_memory, kwargs)
    for graph in _CAPTURING:
        graph.about_to_launch(operation, memory, named)
    result = operation(*memory, **named)
    if not on_device:
        return result
    for graph in _CAPTURING:
        graph.launched(operation, memory, named, result, work=call.launches)
    result = tree_map(_on_device, result)
    return return_and_correct_aliasing(operation, args, kwargs, result) if call.here else result


def _count(kind: str, what: str) -> None:
    """Count a copy or a wait in all recorders, under its name and place."""
    if _RECORDERS:
        key = f"{what} at {_caller()}"
        for recorder in _RECORDERS:
            getattr(recorder, kind)[key] += 1


def _caller() -> str:
    """The innermost line outside torch and this module: file, line and text."""
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back
    if frame is None:
        return "a line that the backward pass does not know"
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{'/'.join(Path(file).parts[-3:])}:{line}: {linecache.getline(file, line).strip()}"


_TORCH = str(Path(torch.__file__).parent)


def _on_device(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else value


def _memory(value: Any) -> Any:
    return value.memory if isinstance(value, DeviceTensor) else value


def _place(memory: Tensor) -> int:
    return memory.untyped_storage().data_ptr()


def _loaded(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """What torch.load is to do with the memory of a tensor that is stored as one of the device."""
    return storage if location.startswith(NAME) else None
