"""Which devices there are, and the slots that jobs run on. A short-lived process asks torch, which stays out of this one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from kdbench.child import ask, exit_reason
from kdbench.errors import BadInput, KdbenchError


_QUERY = """
import json, torch
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "threads": torch.get_num_threads(),
}))
"""


MAX_CPU_SLOTS = 4

QUERY_SECONDS = 300.0


@dataclass(frozen=True)
class Slot:
    """Where one job at a time runs: a device, the worker's environment for it, and its CPU threads (0: torch's choice)."""

    name: str
    kind: str
    environment: dict[str, str]
    threads: int = 0


def query_devices() -> dict[str, Any]:
    """What torch sees on this machine: its version, CUDA's, the visible GPUs' names, the CPU threads."""
    try:
        done = ask(_QUERY, seconds=QUERY_SECONDS)
    except TimeoutError:
        raise KdbenchError(
            f"torch has not said within {QUERY_SECONDS:.0f} s which devices there are: the GPU's driver hangs (does "
            "nvidia-smi?), or the file system of the installation. With an empty CUDA_VISIBLE_DEVICES no GPU is asked for."
        ) from None
    reason = exit_reason(done.returncode)
    if done.returncode < 0:
        raise KdbenchError(f"the process that asks torch for the devices was {reason}")
    if done.returncode:
        raise KdbenchError(f"torch cannot be imported here ({reason}):\n{done.stderr.strip()[-2000:]}")
    machine: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return machine


def make_slots(wanted: str, jobs_per_device: int | None = None) -> list[Slot]:
    """Slots for ``auto``, ``cpu``, or GPU numbers like ``0,2``, which count within CUDA_VISIBLE_DEVICES.

    ``auto`` takes all visible GPUs, else the CPU. Unless told otherwise a GPU has one slot and the CPU one for each core,
    up to MAX_CPU_SLOTS: small networks train fastest with a core each, and slots of one thread do not slow down where
    other processes want the cores. Raises BadInput for a GPU that is not there.
    """
    if jobs_per_device is not None and jobs_per_device < 1:
        raise BadInput("--jobs-per-device must be 1 or more")
    machine = query_devices()
    count = len(machine["gpus"])
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        jobs = jobs_per_device or min(machine["threads"], MAX_CPU_SLOTS)
        threads = max(1, machine["threads"] // jobs)
        return [Slot(f"cpu:{n}" if jobs > 1 else "cpu", "cpu", {}, threads) for n in range(jobs)]
    jobs = jobs_per_device or 1
    numbers = list(range(count)) if wanted == "auto" else _numbers(wanted, count)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible is not None else [str(n) for n in range(count)]
    return [
        Slot(f"gpu:{number}" + (f".{job}" if jobs > 1 else ""), "gpu", {"CUDA_VISIBLE_DEVICES": names[number]})
        for job in range(jobs)
        for number in numbers
    ]


def _numbers(wanted: str, count: int) -> list[int]:
    try:
        numbers = [int(part) for part in wanted.split(",")]
    except ValueError:
        raise BadInput(f"--devices {wanted}: write auto, cpu, or GPU numbers such as 0,1") from None
    absent = [number for number in numbers if not 0 <= number < count]
    if absent:
        there = f"the visible GPUs are 0 to {count - 1}" if count else "torch sees no GPU here (kdbench doctor)"
        raise BadInput(f"--devices {wanted}: there is no GPU {absent[0]}; {there}")
    return list(dict.fromkeys(numbers))
