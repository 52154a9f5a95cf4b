"""How long work takes on a device: fitted to the records of a results folder, and kept in the user's cache."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from kdbench.errors import BadInput
from kdbench.files import remember, remembered
from kdbench.planning.cost import Work
from kdbench.store.result import compute_of
from kdbench.store.store import Store


@dataclass(frozen=True)
class Speed:
    """Seconds per multiply-accumulate, activation, layer run on a batch, weight update and decoded image of one slot.

    device:    the name of the device, with the number of threads of a CPU; "" where the numbers are assumed
    kind:      cpu or gpu
    precision: in which the networks were trained
    records:   how many records the numbers rest on
    error:     the median of |predicted / measured − 1| over these records
    """

    kind: str
    costs: tuple[float, ...]
    device: str = ""
    precision: str = "fp32"
    records: int = 0
    error: float = 0.0

    def seconds(self, work: Work, devices: int = 1) -> float:
        """How long work takes.

        Several devices divide arithmetic, memory traffic and decoding. Each launches all layers and updates all weights, and
        to average the gradients takes as long as another update.
        """
        macs, activations, layers, updates, files = (
            cost * count for cost, count in zip(self.costs, work.values(), strict=True)
        )
        return (macs + activations + files) / devices + layers + (updates if devices == 1 else 2 * updates)

    def __str__(self) -> str:
        if not self.records:
            return f"assumed for a {self.kind.upper()}"
        return f"{self.device}, {self.precision}, from {self.records} records, within {self.error:.0%} for half of them"


ASSUMED = {
    "cpu": Speed("cpu", (2.4e-11, 2.3e-9, 7e-5, 5e-9, 7e-3)),
    "gpu": Speed("gpu", (1e-13, 2e-11, 1e-5, 2e-11, 1e-3)),
}
"""Where nothing has been measured. CPU: fitted to steps of 17 networks on one core of an AMD EPYC; GPU: an assumption of 10
trillion multiply-accumulates per second, 10 µs per layer, and eight processes that decode."""

_SAMPLE = 300
"""At most so many records are read: enough for five numbers."""

_STIFFNESS = 0.002
"""How firmly a number that the records say little of keeps its assumed proportion to the others."""


@dataclass(frozen=True)
class Sample:
    """What one record has cost: its work and seconds, on a device."""

    device: tuple[str, str, str]
    work: Work
    seconds: float


def known_speeds(store: Store) -> list[Speed]:
    """Those measured in a results folder, the best known first; then those that were kept elsewhere, the last used first.

    What the folder's records say is kept for other folders.
    """
    here = speeds_of(samples(store))
    kept = {key: _speed_from(each) for key, each in _kept().items()}
    others = [speed for key, speed in reversed(kept.items()) if speed and key not in map(_key, here)]
    if any(kept.get(_key(speed)) != speed for speed in here):
        remember("speeds", "devices", {_key(speed): asdict(speed) for speed in [*reversed(others), *reversed(here)]})
    return here + others


def choose(speeds: Sequence[Speed], wanted: str = "", precision: str = "fp32") -> Speed:
    """The first that fits: ``wanted`` is cpu, gpu, part of a device's name, or "" for any. Raises BadInput for no device.

    Speeds in another precision stand in where there are none in this one.
    """
    word = wanted.casefold()
    fitting = [speed for speed in speeds if word in (speed.kind, "") or word in speed.device.casefold()]
    if not fitting and word not in (*ASSUMED, ""):
        names = ", ".join(dict.fromkeys(speed.device for speed in speeds)) or "none"
        raise BadInput(f"--on {wanted}: write cpu, gpu, or part of the name of a measured device (here: {names})")
    ranked = sorted(fitting, key=lambda speed: speed.precision != precision)
    return ranked[0] if ranked else ASSUMED[word or "cpu"]


def speeds_of(found: Iterable[Sample]) -> list[Speed]:
    """One speed for each device and precision of some records, those with most records first."""
    groups: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.device].append(sample)
    return [fitted(group) for group in sorted(groups.values(), key=len, reverse=True)]


def samples(store: Store) -> list[Sample]:
    """What records of a folder have cost: all, or some hundred spread over them, which stand for the others."""
    records = [record for kind in ("runs", "teachers") for record in store.records(kind)]
    step = max(1, len(records) // _SAMPLE)
    return [sample for record in records[::step] if (sample := sample_of(record.metadata()))]


def sample_of(metadata: Mapping[str, Any]) -> Sample | None:
    """What a record has cost; None where its metadata does not say, or it trained for no time worth the name."""
    kind, _, seconds = compute_of(dict(metadata))
    work, device = metadata.get("work"), metadata.get("device")
    if kind not in ASSUMED or seconds < 0.05 or not isinstance(work, dict) or not isinstance(device, dict):
        return None
    counts = [work.get(name, 0.0) for name in Work.__slots__]
    if not all(isinstance(count, int | float) and 0 <= count < 1e30 for count in counts) or not any(counts):
        return None
    name = str(device.get("name", ""))
    if kind == "cpu":
        name += f", {device.get('threads')} threads"
    return Sample((kind, name, str(metadata.get("precision", "fp32"))), Work(*counts), seconds)


def fitted(group: Sequence[Sample]) -> Speed:
    """The costs that predict the seconds of some records with the least squared relative error, none of them negative.

    They are held to the proportions of the assumed ones as far as the records leave them open: a folder with networks of one
    kind says little about others.
    """
    kind, name, precision = group[0].device
    assumed = ASSUMED[kind]
    scale = math.exp(median(math.log(sample.seconds / assumed.seconds(sample.work)) for sample in group))
    prior = [scale * cost for cost in assumed.costs]
    rows = [
        [count * cost / sample.seconds for count, cost in zip(sample.work.values(), prior, strict=True)]
        for sample in group
    ]
    factors = _least_squares(rows, _STIFFNESS * len(rows))
    speed = Speed(kind, tuple(f * cost for f, cost in zip(factors, prior, strict=True)), name, precision, len(group))
    error = median(abs(speed.seconds(sample.work) / sample.seconds - 1) for sample in group)
    return Speed(**{**asdict(speed), "error": round(error, 3)})


def _least_squares(rows: Sequence[Sequence[float]], stiffness: float) -> list[float]:
    """The x ≥ 0 that minimises |rows · x − 1|² + stiffness · |x − 1|², by coordinate descent."""
    size = len(rows[0])
    products = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    sums = [sum(row[i] for row in rows) for i in range(size)]
    x = [1.0] * size
    for _ in range(500):
        for i in range(size):
            rest = sum(products[i][j] * x[j] for j in range(size) if j != i)
            x[i] = max(0.0, (sums[i] - rest + stiffness) / (products[i][i] + stiffness))
    return x


def _key(speed: Speed) -> str:
    return f"{speed.device}, {speed.precision}"


def _kept() -> dict[str, Any]:
    kept = remembered("speeds", "devices")
    return kept if isinstance(kept, dict) else {}


def _speed_from(value: Any) -> Speed | None:
    """A speed that was kept; None for what is none."""
    try:
        speed = Speed(**{**value, "costs": tuple(map(float, value["costs"]))})
    except (TypeError, ValueError, KeyError):
        return None
    return speed if len(speed.costs) == len(Work.__slots__) and speed.kind in ASSUMED else None
