"""Two results folders side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kdbench.report.captions import check_versions, empty_cells, score_rules, trials_text, versions_text
from kdbench.report.cells import Cell, make_cell, measured_text
from kdbench.report.observations import Row, collect, measured_on
from kdbench.report.published import Group, Pair, pair_text
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
class Sided:
    """A cell in both folders, and the second minus the first in each run that both have."""

    a: Cell
    b: Cell
    differences: tuple[float, ...]
    terms: str

    @property
    def difference(self) -> float | None:
        """The mean over shared runs; None where there is none."""
        return fmean(self.differences) if self.differences else None

    @property
    def alone(self) -> tuple[int, int]:
        """How many runs are in the first folder only, and in the second only."""
        return self.a.n - len(self.differences), self.b.n - len(self.differences)


@dataclass(frozen=True)
class Comparison:
    """One group of runs in both folders: its cells of which either has something, and these as a sheet."""

    group: Group
    cells: dict[Place, Sided]
    sheet: Sheet

    def values(self) -> Iterator[dict[str, Any]]:
        """One mapping per cell: what it is about, mean, deviation and trials in both folders, the difference.

        The difference is that of the ``shared`` runs; ``a_alone`` and ``b_alone`` are left out of it.
        """
        for (method, (teacher, student)), found in self.cells.items():
            about = {**self.group._asdict(), "method": method, "teacher": teacher, "student": student}
            sides = {
                f"{side}_{key}": getattr(cell, key)
                for side, cell in (("a", found.a), ("b", found.b))
                for key in _MEASURED
            }
            a_alone, b_alone = found.alone
            shared = {"shared": len(found.differences), "a_alone": a_alone, "b_alone": b_alone}
            yield {**about, **sides, "difference": found.difference, **shared, "terms": found.terms}


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
        cells = {place: found for place, found in cells.items() if found.a.n or found.b.n}
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


def _sheet(group: Group, table: _Table, cells: dict[Place, Sided], names: tuple[str, str]) -> Sheet:
    lines = [
        tuple(map(Entry, (_words(place, ", "), measured_text(each.a), measured_text(each.b), _difference_text(each))))
        for place, each in cells.items()
    ]
    lonely = [(_words(place), _left_out(each, names)) for place, each in cells.items()]
    header = tuple(map(Entry, ("method, networks", *names, "difference")))
    return Sheet(
        group.title,
        (Band((header,), (tuple(lines),)),),
        caption=_caption(group, table, list(cells.values()), names),
        notes=tuple(empty_cells([*lonely, *table.elsewhere], exactly=True)),
    )


def _left_out(found: Sided, names: tuple[str, str]) -> str:
    """What of a cell the difference leaves out, or ""."""
    if not (found.a.n and found.b.n):
        return f"only in {names[0] if found.a.n else names[1]}"
    if not found.differences:
        return "no trial is in both folders, so nothing is compared"
    trials = [f"{trials_text([n])} only in {name}" for n, name in zip(found.alone, names, strict=True) if n]
    return f"{', '.join(trials)}: left out of the difference" if trials else ""


def _caption(group: Group, table: _Table, cells: list[Sided], names: tuple[str, str]) -> str:
    images = measured_on(group.dataset)
    rules = score_rules((row.score for row in table.side(0)), images)
    folders = [
        ", ".join(
            filter(
                None, (f"{name}: {trials_text((c.a, c.b)[side].n for c in cells)}", versions_text(table.versions(side)))
            )
        )
        for side, name in enumerate(names)
    ]
    difference = "difference: second minus first, mean over the trials that both have (n)"
    parts = [f"protocol {group.protocol}", rules, *folders, difference]
    return f"Top-1 {images} accuracy in %, mean ± sd (n); {'; '.join(parts)}."


def _words(place: Place, between: str = " on ") -> str:
    method, pair = place
    return f"{method}{between}{pair_text(pair)}"


def _cells(sides: Sides) -> Sided:
    a, b = (make_cell((row.trial, row.top1, row.reason) for row in rows) for rows in sides)
    differences = tuple(b.values[trial] - value for trial, value in a.values.items() if trial in b.values)
    return Sided(a, b, differences, sides[0][0].terms)


def _difference_text(found: Sided) -> str:
    return "–" if found.difference is None else f"{found.difference:+.2f} ({len(found.differences)})"
