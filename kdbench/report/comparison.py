"""Two or more results folders side by side."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.report.captions import empty_cells
from kdbench.report.cells import Cell, make_cell, measured_text
from kdbench.report.rows import Row, collect
from kdbench.report.sheet import Band, Entry, Line, Sheet
from kdbench.store.store import Store
from kdbench.suite.suite import Suite


def compare(suites: Sequence[Suite], first: Store, second: Store) -> list[Sheet]:
    """One sheet per setting that either store has something of: mean, deviation and n in each, and the difference."""
    sides = [collect(suites, [store]) for store in (first, second)]
    groups: dict[tuple[str, ...], dict[tuple[str, ...], tuple[list[Row], list[Row]]]] = {}
    for side, rows in enumerate(sides):
        for row in rows:
            setting = (row.suite, row.protocol, row.dataset, row.scenario, row.strategy)
            place = (row.method, row.teacher, row.student)
            groups.setdefault(setting, {}).setdefault(place, ([], []))[side].append(row)
    names = (str(first.root), str(second.root))
    sheets = (_sheet(setting, places, names) for setting, places in groups.items())
    return [sheet for sheet in sheets if sheet]


def _sheet(
    setting: tuple[str, ...], places: dict[tuple[str, ...], tuple[list[Row], list[Row]]], names: tuple[str, str]
) -> Sheet | None:
    suite, protocol, dataset, scenario, strategy = setting
    lines: list[Line] = []
    lonely: list[tuple[str, str]] = []
    for (method, teacher, student), sides in places.items():
        a, b = (make_cell((row.top1, row.reason) for row in rows) for rows in sides)
        if not a.n and not b.n:
            continue
        pair = f"{teacher} → {student}" if teacher else student
        numbers = (measured_text(a), measured_text(b), _difference(a, b))
        lines.append(tuple(Entry(text) for text in (f"{method}, {pair}", *numbers)))
        if not a.n or not b.n:
            lonely.append((f"{method} on {pair}", f"only in {names[0] if a.n else names[1]}"))
    if not lines:
        return None
    title = ", ".join(part for part in (dataset, scenario, f"{strategy} teacher") if part)
    header = tuple(Entry(text) for text in ("method, networks", *names, "difference"))
    return Sheet(
        f"{suite}: {title}",
        (Band((header,), (tuple(lines),)),),
        caption=f"Top-1 test accuracy in %, mean ± sd (n); protocol {protocol}; difference: second minus first.",
        notes=tuple(empty_cells(lonely)),
    )


def _difference(a: Cell, b: Cell) -> str:
    return "–" if a.mean is None or b.mean is None else f"{b.mean - a.mean:+.2f}"
