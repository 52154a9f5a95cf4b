"""The machine under a training process: device, threads, memory, versions, torch's settings."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import torch

from kdbench import __version__
from kdbench.errors import message_of
from kdbench.suite.components import LIBRARIES


def prepare(device_name: str, threads: int, *, deterministic: bool = False) -> torch.device:
    """Set up the process for a device, ``cpu`` or ``cuda``. ``threads`` is the CPU's share of one slot (0: torch's own).

    On a GPU ``fp32`` means TF32 in convolutions and float32 in products of matrices, as for the authors' code under its
    torch's defaults. ``deterministic``: float32 throughout, and algorithms that give the same bits each time as far as torch
    has them; it warns of operations for which it has none.
    """
    device = torch.device(device_name)
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.allow_tf32 = not deterministic
        torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """What a result depends on beside its spec, and what it cost depends on."""
    facts: dict[str, Any] = {
        "device": {"kind": "cpu", "name": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {
            "kdbench": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            **{name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules},
        },
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        facts["device"] |= {"kind": "gpu", "name": torch.cuda.get_device_name(device), "capability": capability}
        facts["versions"] |= {
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
        facts["settings"] = {
            "tf32_convolutions": _tf32_convolutions(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        facts["peak_memory"] = torch.cuda.max_memory_allocated(device)
    return facts


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: in torch, on the CPU, in a library of CUDA, or in the GPU's driver.

    Libraries that find no room for their workspace often say only that they have failed: that counts as lack of memory where
    less than a tenth of the GPU's memory is free.
    """
    message = message_of(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(message):
        return True
    return _PERHAPS_NO_MEMORY.search(message) is not None and _memory_is_short()


_NO_MEMORY = re.compile(r"DefaultCPUAllocator|_STATUS_ALLOC_FAILED|(CUDA|HIP)( driver)? error: out of memory")
_PERHAPS_NO_MEMORY = re.compile(r"unable to find an engine|_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)")
_DEVICE_LOST = re.compile(r"(CUDA|HIP)( driver)? error|CUDNN_STATUS_EXECUTION_FAILED|cusolver error")

SHORT_MEMORY = 0.1
"""The free share of a GPU's memory below which a library's unexplained failure is taken for lack of memory."""


def _memory_is_short() -> bool:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the device itself is lost
        return False
    return free < SHORT_MEMORY * total


class LostRank(RuntimeError):
    """Another process that trains the same job is gone, and with it its portion of every batch."""


def device_lost(error: BaseException) -> bool:
    """Whether an error leaves the GPU, or the company of other processes, unusable: whatever runs next would fail, too."""
    if out_of_memory(error):
        return False
    if isinstance(error, LostRank):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # since torch 2.8
        return True
    message = message_of(error)
    return any(sign.search(message) for sign in (_DEVICE_LOST, _PERHAPS_NO_MEMORY))


def lacks_variance(error: BaseException) -> bool:
    """Whether an error says that a batch norm in training mode was given a single value of each channel."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in message_of(error)


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


class Settings:
    """torch's settings of this process, which all runs of a worker share, as they are when this is made."""

    def __init__(self) -> None:
        self.values = {name: read() for name, (read, _) in _SETTINGS.items()}

    def put_back(self) -> list[str]:
        """Undo what was changed since; returns the names of the settings."""
        now = Settings().values
        changed = [name for name, value in self.values.items() if value != now[name]]
        for name in changed:
            _SETTINGS[name][1](self.values[name])
        return changed


def _precisions() -> list[Any]:
    """What has a ``fp32_precision`` of its own, those first whose setting is passed on to others; none before torch 2.9."""
    backends = torch.backends
    operations = (getattr(backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn"))
    cudnn = (getattr(backends.cudnn, name, None) for name in ("conv", "rnn"))
    places = (backends, backends.mkldnn, backends.cudnn, *operations, backends.cuda.matmul, *cudnn)
    return [place for place in places if hasattr(place, "fp32_precision")]


def _tf32_convolutions() -> bool:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else bool(cudnn.allow_tf32)


def _read_precision() -> tuple[str, ...]:
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # since 2.9, where one of these was set that it does not know of
        overall = "highest"
    return overall, *(place.fp32_precision for place in _precisions())


def _set_precision(values: tuple[str, ...]) -> None:
    torch.set_float32_matmul_precision(values[0])
    for place, value in zip(_precisions(), values[1:], strict=True):
        if place.fp32_precision != value:
            place.fp32_precision = value


def _read_cudnn() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    tf32 = () if hasattr(cudnn, "conv") else (cudnn.allow_tf32,)  # since torch 2.9 a precision like the others
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, *tf32


def _set_cudnn(flags: tuple[bool, ...]) -> None:
    for name, flag in zip(("enabled", "benchmark", "deterministic", "allow_tf32"), flags, strict=False):
        setattr(torch.backends.cudnn, name, flag)


def _read_deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(flags: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default device": (lambda: torch.empty(0).device, lambda device: torch.set_default_device(None)),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic algorithms": (_read_deterministic, _set_deterministic),
    "float32 matmul precision": (_read_precision, _set_precision),
    "autocast on the CPU": (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    "autocast dtype on the CPU": (partial(torch.get_autocast_dtype, "cpu"), partial(torch.set_autocast_dtype, "cpu")),
    "autocast on the GPU": (partial(torch.is_autocast_enabled, "cuda"), partial(torch.set_autocast_enabled, "cuda")),
    "autocast dtype on the GPU": (partial(torch.get_autocast_dtype, "cuda"), partial(torch.set_autocast_dtype, "cuda")),
    "mkldnn": (lambda: torch.backends.mkldnn.enabled, lambda on: setattr(torch.backends.mkldnn, "enabled", on)),
    "cudnn": (_read_cudnn, _set_cudnn),
}
"""How each setting is read and put back."""
