"""The machine under a training process: device, threads, memory, versions."""

from __future__ import annotations

import platform
from typing import Any

import numpy
import torch

from kdbench import __version__
from kdbench.errors import message_of


def prepare(device_name: str, threads: int) -> torch.device:
    """Set up the process for a device, ``cpu`` or ``cuda``. ``threads`` is the CPU's share of one slot (0: torch's own)."""
    device = torch.device(device_name)
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """What a result depends on beside its spec, and what it cost depends on."""
    cuda = device.type == "cuda"
    return {
        "device": {
            "kind": "gpu" if cuda else "cpu",
            "name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "kdbench": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "system": f"{platform.system()} {platform.machine()}",
    }


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: in torch, on the CPU, in cuBLAS or cuDNN, or in the GPU's driver."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in message_of(error) for sign in _NO_MEMORY
    )


_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def device_lost(error: BaseException) -> bool:
    """Whether an error leaves the GPU unusable for this process: whatever runs next would fail, too."""
    return "CUDA error" in message_of(error) and not out_of_memory(error)


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
