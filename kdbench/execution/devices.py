"""Which devices there are, and the slots that jobs run on. A short-lived process asks torch, which stays out of this one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.child import ask, exit_reason
from kdbench.errors import BadInput, KdbenchError


_QUERY = "from kdbench.training.gpus import print_machine\nprint_machine()"

MAX_CPU_SLOTS = 4

QUERY_SECONDS = 300.0

NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""The environment of a process that is to leave the GPUs and their driver alone."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it: compute capability, memory in bytes, why torch cannot use it ("": it can), and why steps are
    not replayed as graphs, where that was tried.
    """

    name: str
    capability: tuple[int, int] = (0, 0)
    memory: int = 0
    trouble: str = ""
    eager: str = ""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {'.'.join(map(str, self.capability))})"


@dataclass(frozen=True)
class Machine:
    """What torch sees on this machine: CPU threads, versions, the architectures it has kernels for, GPUs.

    ``trouble`` is why it can use none of the GPUs; ``absent``: because there is none, or none is visible.
    """

    threads: int
    torch: str = ""
    cuda: str = ""
    cudnn: int = 0
    archs: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""
    absent: bool = False

    @property
    def usable(self) -> list[int]:
        """The numbers of the GPUs that torch can use."""
        return [number for number, gpu in enumerate(self.gpus) if not gpu.trouble]

    def unusable(self) -> list[str]:
        """A sentence on each GPU, or on all, that torch cannot use."""
        each = [
            f"GPU {number}, {gpu}, cannot be used: {gpu.trouble}" for number, gpu in enumerate(self.gpus) if gpu.trouble
        ]
        return each if self.gpus or not self.trouble or self.absent else [f"no GPU can be used: {self.trouble}"]


@dataclass(frozen=True)
class Slot:
    """Where one job at a time runs: a device, the worker's environment for it, and its CPU threads (0: torch's choice).

    ``host``: the machine, "" for this one.
    """

    name: str
    kind: str
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    gpu: Gpu | None = None
    host: str = ""

    @property
    def device(self) -> str:
        """The same for slots that share a GPU of a host; slots of the CPU share no cores."""
        return self.environment.get("CUDA_VISIBLE_DEVICES") or self.name


def query_devices(*, gpus: bool = True, tried: bool = False) -> Machine:
    """What torch sees on this machine. Without ``gpus`` these are hidden from it; ``tried``: a kernel is run on each."""
    hint = "" if not gpus else " With --devices cpu, or an empty CUDA_VISIBLE_DEVICES, no GPU is asked for."
    try:
        done = ask(_QUERY, {"try": tried}, seconds=QUERY_SECONDS, environment={} if gpus else NO_GPUS)
    except TimeoutError:
        raise KdbenchError(
            f"torch has not said within {QUERY_SECONDS:.0f} s which devices there are: the GPU's driver hangs (does "
            f"nvidia-smi?), or the file system of the installation.{hint}"
        ) from None
    reason = exit_reason(done.returncode)
    if done.returncode < 0:
        raise KdbenchError(f"the process that asks torch for the devices was {reason}.{hint}")
    if done.returncode:
        raise KdbenchError(f"torch cannot be imported here ({reason}):\n{done.stderr.strip()[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found = [Gpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in facts["gpus"]]
    return Machine(**{**facts, "archs": tuple(facts["archs"]), "gpus": tuple(found)})


def make_slots(
    wanted: str, jobs_per_device: int | None = None, warn: Callable[[str], None] = lambda text: None
) -> list[Slot]:
    """Slots for ``auto``, ``cpu``, or GPU numbers like ``0,2``, which count within CUDA_VISIBLE_DEVICES.

    ``auto`` takes all visible GPUs that torch can use, else the CPU, and warns of those that it cannot use. Unless told
    otherwise a GPU has one slot and the CPU one for each core, up to MAX_CPU_SLOTS: small networks train fastest with a core
    each, and slots of one thread do not slow down where other processes want the cores. Raises BadInput for a GPU that is
    not there, or that torch cannot use.
    """
    if jobs_per_device is not None and jobs_per_device < 1:
        raise BadInput("--jobs-per-device must be 1 or more")
    machine = query_devices(gpus=wanted != "cpu")
    numbers = [] if wanted == "cpu" else machine.usable if wanted == "auto" else _numbers(wanted, machine)
    for text in machine.unusable() if wanted == "auto" else ():
        warn(f"{text} (kdbench doctor)" + ("" if numbers else "; training on the CPU"))
    if not numbers:
        jobs = jobs_per_device or min(machine.threads, MAX_CPU_SLOTS)
        threads = max(1, machine.threads // jobs)
        return [Slot(f"cpu:{n}" if jobs > 1 else "cpu", "cpu", NO_GPUS, threads) for n in range(jobs)]
    jobs = jobs_per_device or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(n) for n in range(len(machine.gpus))]
    return [
        Slot(
            f"gpu:{number}" + (f".{job}" if jobs > 1 else ""),
            "gpu",
            {"CUDA_VISIBLE_DEVICES": names[number].strip()},
            gpu=machine.gpus[number],
        )
        for job in range(jobs)
        for number in numbers
    ]


def _numbers(wanted: str, machine: Machine) -> list[int]:
    """The GPUs that are asked for by number. Raises BadInput where one is not there or not usable."""
    try:
        numbers = [int(part) for part in wanted.split(",")]
    except ValueError:
        raise BadInput(f"--devices {wanted}: write auto, cpu, or GPU numbers such as 0,1") from None
    count = len(machine.gpus)
    absent = [number for number in numbers if not 0 <= number < count]
    if absent:
        reason = f": {machine.trouble}" if machine.trouble else ""
        there = (
            f"the visible GPUs are 0 to {count - 1}" if count else f"torch sees no GPU here{reason} (kdbench doctor)"
        )
        raise BadInput(f"--devices {wanted}: there is no GPU {absent[0]}; {there}")
    for number in numbers:
        if trouble := machine.gpus[number].trouble:
            raise BadInput(f"--devices {wanted}: GPU {number}, {machine.gpus[number]}, cannot be used: {trouble}")
    return list(dict.fromkeys(numbers))
