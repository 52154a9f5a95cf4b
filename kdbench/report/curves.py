"""Learning curves of a table's cells: the mean over trials, and the lowest and highest of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.store.record import Record
from kdbench.suite.recipe import Recipe


QUANTITIES = ("top1", "loss")


@dataclass(frozen=True)
class Curve:
    """A quantity by epoch, in four significant digits. ``low`` and ``high`` are empty where there is one trial."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def points_per_curve(runs: int, curves: int) -> int:
    """How many epochs of each curve are drawn, so that a page of many runs stays small and is made within seconds."""
    return max(16, min(120, 120_000 // max(1, curves), 160_000 // max(1, runs)))


def stride(recipe: Recipe, points: int) -> int:
    """Every how many epochs a curve has a point: all, or a multiple of the epochs between two tests."""
    tested = recipe.evaluate_every
    return 1 if recipe.epochs <= points else -(-recipe.epochs // (points * tested)) * tested


def cell_curves(records: Iterable[tuple[Record, int]]) -> dict[str, Curve]:
    """The curves of one cell, by quantity, from the records of its trials and each one's stride."""
    trials = [record.metrics(every=every) for record, every in records]
    curves = {quantity: _curve(trials, quantity) for quantity in QUANTITIES}
    return {quantity: curve for quantity, curve in curves.items() if curve.epochs}


def _curve(trials: Sequence[Sequence[dict[str, Any]]], quantity: str) -> Curve:
    found: defaultdict[int, list[float]] = defaultdict(list)
    for metrics in trials:
        for row in metrics:
            epoch, value = row.get("epoch"), row.get(quantity)
            if isinstance(epoch, int) and isinstance(value, (float, int)) and abs(value) < 1e9:
                found[epoch].append(value)
    epochs = sorted(found)
    several = any(len(values) > 1 for values in found.values())
    return Curve(
        epochs=epochs,
        mean=[_short(sum(found[epoch]) / len(found[epoch])) for epoch in epochs],
        low=[_short(min(found[epoch])) for epoch in epochs] if several else [],
        high=[_short(max(found[epoch])) for epoch in epochs] if several else [],
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
