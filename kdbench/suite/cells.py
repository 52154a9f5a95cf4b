"""The cells of a grid: the product of its axes, without what is excluded, with what is included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from kdbench.suite.schema import SELECTOR_KEYS, GridEntry, MethodEntry, Selector
from kdbench.suite.suite import Cell


MOST_RUNS = 20_000
"""As many runs may one command have; the suites of all three papers have 3,290 together."""


def method_name(entry: MethodEntry) -> str:
    """A method's name; a sum of terms without one is called after the terms."""
    if entry.name:
        return entry.name
    return "+".join(entry.terms) if isinstance(entry.terms, dict) else ""


def axes(grid: GridEntry, selector: Selector | None = None) -> dict[str, int]:
    """How long a grid's axes are, by key; the axes that ``selector`` names have its values."""
    selector = selector or Selector.model_construct()
    if selector.teacher or selector.student:
        pairs = len(selector.teacher or _teachers(grid)) * len(selector.student or _students(grid))
    else:
        pairs = len(grid.pairs) + len(grid.teacher or ("",)) * len(grid.student)
    return {
        "pairs": pairs,
        "method": len(selector.method or grid.method),
        "dataset": len(grid.dataset),
        "strategy": len(selector.strategy or grid.strategy),
        "scenario": len(grid.scenario),
    }


def cells(grid: GridEntry, selector: Selector | None = None) -> Iterator[Cell]:
    """The product of a grid's axes; the axes that ``selector`` names are replaced by its values."""
    selector = selector or Selector.model_construct()
    methods = selector.method or [method_name(entry) for entry in grid.method]
    data = [entry.spec for entry in grid.dataset if not selector.dataset or entry.name in selector.dataset]
    combinations = product(_pairs(grid, selector), data, selector.strategy or grid.strategy, grid.scenario, methods)
    for (teacher, student), dataset, strategy, scenario, method in combinations:
        yield Cell(teacher, student, method, dataset, strategy, scenario)


def _pairs(grid: GridEntry, selector: Selector) -> Iterable[tuple[str, str]]:
    if selector.teacher or selector.student:
        return product(selector.teacher or _teachers(grid), selector.student or _students(grid))
    return [*((pair.teacher, pair.student) for pair in grid.pairs), *product(grid.teacher or ("",), grid.student)]


def _teachers(grid: GridEntry) -> dict[str, None]:
    return dict.fromkeys([*(pair.teacher for pair in grid.pairs), *((grid.teacher or ("",)) if grid.student else ())])


def _students(grid: GridEntry) -> dict[str, None]:
    return dict.fromkeys([*(pair.student for pair in grid.pairs), *grid.student])


class Matches:
    """Which of many cells a selector means, told from the values on their axes."""

    def __init__(self, among: list[Cell]) -> None:
        self.count = len(among)
        self.by_value: dict[tuple[str, str], set[int]] = {}
        for index, cell in enumerate(among):
            for key in SELECTOR_KEYS:
                value = cell.dataset.name if key == "dataset" else getattr(cell, key)
                self.by_value.setdefault((key, value), set()).add(index)

    def of(self, selector: Selector) -> set[int]:
        """The places of the cells that are on every axis that the selector names."""
        found = set(range(self.count))
        for key in SELECTOR_KEYS:
            if values := getattr(selector, key):
                found &= set().union(*(self.by_value.get((key, value), ()) for value in values))
        return found
