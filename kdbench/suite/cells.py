"""The cells of a grid: the product of its axes, without what is excluded, with what is included."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from kdbench.suite.schema import SELECTOR_KEYS, GridEntry, MethodEntry, Selector
from kdbench.suite.suite import Cell


def method_name(entry: MethodEntry) -> str:
    """A method's name; a sum of terms without one is called after the terms."""
    if entry.name:
        return entry.name
    return "+".join(entry.terms) if isinstance(entry.terms, dict) else ""


def cells(grid: GridEntry, selector: Selector | None = None) -> Iterator[Cell]:
    """The product of a grid's axes; the axes that ``selector`` names are replaced by its values."""
    selector = selector or Selector.model_construct()
    methods = selector.method or [method_name(entry) for entry in grid.method]
    data = [entry.spec for entry in grid.dataset if not selector.dataset or entry.name in selector.dataset]
    axes = product(_pairs(grid, selector), data, selector.strategy or grid.strategy, grid.scenario, methods)
    for (teacher, student), dataset, strategy, scenario, method in axes:
        yield Cell(teacher, student, method, dataset, strategy, scenario)


def _pairs(grid: GridEntry, selector: Selector) -> list[tuple[str, str]]:
    own = [(pair.teacher, pair.student) for pair in grid.pairs]
    own += product(grid.teacher or ("",), grid.student)
    if not selector.teacher and not selector.student:
        return own
    teachers = selector.teacher or tuple(dict.fromkeys(teacher for teacher, _ in own))
    students = selector.student or tuple(dict.fromkeys(student for _, student in own))
    return list(product(teachers, students))


def matches(selector: Selector, cell: Cell) -> bool:
    """Whether a cell is on every axis that the selector names."""
    place = {key: getattr(cell, key) for key in SELECTOR_KEYS} | {"dataset": cell.dataset.name}
    return all(not getattr(selector, key) or value in getattr(selector, key) for key, value in place.items())
