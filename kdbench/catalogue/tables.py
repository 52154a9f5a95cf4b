"""The printed tables that a suite may fill, by name. What they look like is the report's business."""

from __future__ import annotations

from kdbench.catalogue.names import normalise, unknown
from kdbench.errors import BadInput


_PRINTED = {"ega": "12345ABCD", "sskd": ("1", "2", "3", "4", "5", "6", "S1"), "semckd": "23456789"}
TABLES: tuple[str, ...] = tuple(f"{paper}-{number}" for paper, numbers in _PRINTED.items() for number in numbers)


def table_name(name: str) -> str:
    """The canonical name of a table, such as ``sskd-S1`` for ``SSKD_s1``. Raises BadInput with the nearest name."""
    found = {normalise(table): table for table in TABLES}.get(normalise(name))
    if found is None:
        raise BadInput(unknown("table", name, TABLES, "tables"))
    return found
