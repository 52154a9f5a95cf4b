"""Two results folders side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.report.captions import check_versions, empty_cells, score_rules, trials_text, versions_text
from kdbench.report.cells import Cell, make_cell, measured_text
from kdbench.report.keys import Group, Pair, pair_text
from kdbench.report.rows import Row, collect, measured_on
from kdbench.report.sheet import Band, Entry, Sheet
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


Place = tuple[str, Pair]
Sides = tuple[list[Row], list[Row]]


@dataclass
class _Table:
    """One group of runs: the rows of both folders by method and networks, and the suites that show some before."""

    places: dict[Place, Sides] = field(default_factory=dict)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)

    def side(self, number: int) -> list[Row]:
        return [row for sides in self.places.values() for row in sides[number]]

    def versions(self, number: int) -> list[str]:
        return list({row.run_id: row.version for row in self.side(number) if row.top1 is not None}.values())


@dataclass(frozen=True)
class Comparison:
    """One group of runs in both folders: its cells of which either has something, and these as a sheet."""

    group: Group
    cells: dict[Place, tuple[Cell, Cell]]
    sheet: Sheet

    def values(self) -> Iterator[dict[str, Any]]:
        """One mapping per cell: what it is about, mean, deviation and trials in both folders, the difference."""
        for (method, (teacher, student)), (a, b) in self.cells.items():
            about = {**self.group._asdict(), "method": method, "teacher": teacher, "student": student}
            sides = {f"{side}_{key}": getattr(cell, key) for side, cell in (("a", a), ("b", b)) for key in _MEASURED}
            yield {**about, **sides, "difference": _difference(a, b)}


_MEASURED = ("mean", "sd", "n", "planned", "note")


def compare(suites: Sequence[Suite], first: Store, second: Store, *, mix_versions: bool = False) -> list[Comparison]:
    """One comparison for each group of runs that either store has something of.

    Cells that several suites share stand in the first of them. Raises KdbenchError where numbers of incompatible versions of
    kdbench would stand in one table.
    """
    names = (str(first.root), str(second.root))
    tables = _tables([collect(suites, [store]) for store in (first, second)])
    found = []
    for group, table in tables.items():
        if not mix_versions:
            check_versions(group.title, [version for side in (0, 1) for version in table.versions(side)])
        cells = {place: _cells(sides) for place, sides in table.places.items()}
        cells = {place: (a, b) for place, (a, b) in cells.items() if a.n or b.n}
        if cells:
            found.append(Comparison(group, cells, _sheet(group, table, cells, names)))
    return found


def _tables(sides: Sequence[Sequence[Row]]) -> dict[Group, _Table]:
    tables: dict[Group, _Table] = {}
    for side, rows in enumerate(sides):
        for row in rows:
            places = tables.setdefault(row.group, _Table()).places
            places.setdefault((row.method, row.pair), ([], []))[side].append(row)
    shown: dict[tuple[object, ...], str] = {}
    for group, table in tables.items():
        for place, found in list(table.places.items()):
            suite = shown.setdefault((*group[1:], *place, *sorted(row.run_id for row in found[0])), group.suite)
            if suite != group.suite:
                del table.places[place]
                table.elsewhere.append((_words(place), f"shown under {suite}"))
    return tables


def _sheet(group: Group, table: _Table, cells: dict[Place, tuple[Cell, Cell]], names: tuple[str, str]) -> Sheet:
    lines = [
        tuple(map(Entry, (_words(place, ", "), measured_text(a), measured_text(b), _difference_text(a, b))))
        for place, (a, b) in cells.items()
    ]
    lonely = [
        (_words(place), f"only in {names[0] if a.n else names[1]}")
        for place, (a, b) in cells.items()
        if not (a.n and b.n)
    ]
    header = tuple(map(Entry, ("method, networks", *names, "difference")))
    return Sheet(
        group.title,
        (Band((header,), (tuple(lines),)),),
        caption=_caption(group, table, list(cells.values()), names),
        notes=tuple(empty_cells([*lonely, *table.elsewhere], exactly=True)),
    )


def _caption(group: Group, table: _Table, cells: list[tuple[Cell, Cell]], names: tuple[str, str]) -> str:
    images = measured_on(group.dataset)
    rules = score_rules((row.score for row in table.side(0)), images)
    folders = [
        ", ".join(
            filter(
                None, (f"{name}: {trials_text(pair[side].n for pair in cells)}", versions_text(table.versions(side)))
            )
        )
        for side, name in enumerate(names)
    ]
    parts = [f"protocol {group.protocol}", rules, *folders, "difference: second minus first"]
    return f"Top-1 {images} accuracy in %, mean ± sd (n); {'; '.join(parts)}."


def _words(place: Place, between: str = " on ") -> str:
    method, pair = place
    return f"{method}{between}{pair_text(pair)}"


def _cells(sides: Sides) -> tuple[Cell, Cell]:
    first, second = (make_cell((row.top1, row.reason) for row in rows) for rows in sides)
    return first, second


def _difference(a: Cell, b: Cell) -> float | None:
    return None if a.mean is None or b.mean is None else b.mean - a.mean


def _difference_text(a: Cell, b: Cell) -> str:
    difference = _difference(a, b)
    return "–" if difference is None else f"{difference:+.2f}"
