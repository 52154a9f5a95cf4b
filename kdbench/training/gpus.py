"""What this torch can do with the GPUs of this machine. `kdbench.execution.devices` asks in a process of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.nn import functional as F


_NO_GPU = (
    "Found no NVIDIA driver",
    "No CUDA GPUs are available",
    "No HIP GPUs are available",
    "not compiled with CUDA",
)
"""What torch says where there is no GPU to use, in contrast to one that it cannot use."""


def print_machine() -> None:
    """Print as JSON what torch sees. The request on standard input: ``try``, whether each GPU is tried, too."""
    print(json.dumps(machine(tried=bool((json.load(sys.stdin) or {}).get("try")))))


def machine(*, tried: bool = False) -> dict[str, Any]:
    """Versions, CPU threads and GPUs as torch sees them; the fields of `kdbench.execution.devices.Machine`.

    ``trouble`` says why torch can use no GPU; each GPU's own, why it cannot use that one. ``absent``: it sees none at all.
    """
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip or "",
        "cudnn": 0,
        "threads": torch.get_num_threads(),
        "archs": [],
        "gpus": [],
        "trouble": "",
        "absent": False,
    }
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        facts["trouble"] = _line(error)
        facts["absent"] = any(sign in facts["trouble"] for sign in _NO_GPU)
        return facts
    facts["cudnn"] = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    facts["archs"] = torch.cuda.get_arch_list()
    facts["gpus"] = [_gpu(number, facts["archs"], tried=tried) for number in range(torch.cuda.device_count())]
    return facts


def _gpu(number: int, archs: list[str], *, tried: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": f"GPU {number}", "capability": [0, 0], "memory": 0, "trouble": "", "eager": ""}
    try:
        facts["name"] = torch.cuda.get_device_name(number)
        facts["capability"] = capability = list(torch.cuda.get_device_capability(number))
        facts["memory"] = torch.cuda.get_device_properties(number).total_memory
        if not has_kernels((capability[0], capability[1]), archs):
            facts["trouble"] = f"this torch has kernels for {', '.join(archs)} only"
        elif tried:
            device = torch.device("cuda", number)
            facts["trouble"] = trouble_of(device)
            facts["eager"] = "" if facts["trouble"] else eager_because(device)
    except Exception as error:
        facts["trouble"] = _line(error)
    return facts


def has_kernels(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether a build for ``archs``, such as ``sm_86`` or ``compute_90``, runs on a GPU of this compute capability.

    Machine code (`sm`) runs on its generation from its own minor version on, code for the driver to compile (`compute`) on
    all that is newer; code with a suffix, as in ``sm_90a``, on its own kind alone. AMD's names (``gfx90a``) are not judged.
    """
    known = [arch.partition("_") for arch in archs if arch.startswith(("sm_", "compute_"))]
    if not known:
        return True
    for kind, _, version in known:
        number = int(version.rstrip("af"))
        built = divmod(number, 10)
        if built == capability:
            return True
        if version.isdigit() and built < capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def trouble_of(device: torch.device) -> str:
    """Why a device cannot train, found by a small convolution and product, forward and backward; "" if it can.

    It draws no random numbers.
    """
    try:
        images = torch.ones(2, 3, 8, 8, device=device)
        kernel = torch.ones(4, 3, 3, 3, device=device, requires_grad=True)
        matrix = torch.ones(4, 4, device=device, requires_grad=True)
        (F.conv2d(images, kernel).mean((2, 3)) @ matrix).sum().backward()  # type: ignore[no-untyped-call]
        torch.stack([kernel.grad.sum(), matrix.grad.sum()]).tolist()  # type: ignore[union-attr]  # waits for the device
    except Exception as error:
        return _line(error)
    return ""


def eager_because(device: torch.device) -> str:
    """Why a device cannot replay steps as graphs, found by one that counts; "" if it can."""
    from kdbench.training.replay import WARM_UP, Captured, why_eager  # a torch that is broken may lack what it imports

    if reason := why_eager(device):
        return reason
    reasons: list[str] = []
    count, step = torch.zeros(1, device=device), Captured[Any](device, reasons.append)
    try:
        for _ in range(WARM_UP + 2):
            step(lambda: count.add_(1), None, lambda: [count])
        if not reasons and count.item() != WARM_UP + 2:
            return "a replayed count is wrong"
    except Exception as error:
        return _line(error)
    return "; ".join(reasons)


def _line(error: Exception) -> str:
    """An error's message up to CUDA's advice for debugging, on one line."""
    text = str(error).partition("\nCUDA kernel errors might")[0].partition("\nFor debugging consider")[0]
    return " ".join(text.split())[:400] or type(error).__name__
