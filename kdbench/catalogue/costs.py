"""What a training step costs with each method, as measured by benchmarks/costs.py. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from kdbench.catalogue.names import normalise


@dataclass(frozen=True)
class Cost:
    """A method's step with one pair of networks.

    time, memory: as multiples of those of kd's step; memory is the growth of the process up to its peak
    parameters:   how many numbers the method trains beside the student's own
    teacher:      the teacher of the pair, or the auxiliary in its place; "none" where the method has no teacher
    """

    time: float
    memory: float
    parameters: int
    teacher: str


@dataclass(frozen=True)
class Costs:
    """All measured methods, by name, and how they were measured; ``date`` is an ISO date."""

    machine: str
    date: str
    student: str
    batch: int
    methods: dict[str, Cost]

    def of(self, method: str) -> Cost | None:
        """A method's cost, in either spelling of its name; None where it was not measured."""
        return self.methods.get(normalise(method))

    def how(self, cost: Cost) -> str:
        """How a method's cost was measured, in one line."""
        pair = f"{cost.teacher} → {self.student}" if cost.teacher != "none" else f"{self.student} without a teacher"
        return f"{pair}, batch {self.batch}, images as CIFAR-100's; {self.machine}, {self.date}"


@cache
def costs() -> Costs:
    """The measured costs."""
    raw = yaml.safe_load(files("kdbench.catalogue").joinpath("costs.yaml").read_text(encoding="utf-8"))
    methods = {normalise(name): Cost(**values) for name, values in raw["methods"].items()}
    return Costs(raw["machine"], str(raw["date"]), raw["student"], raw["batch"], methods)
