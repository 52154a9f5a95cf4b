"""The papers' tables in their own layout, with published and measured numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from kdbench.catalogue.tables import Axis, Band, Layout, Place, Rule, layouts, remarks
from kdbench.reporting.captions import (
    abbreviate,
    by_reason,
    caption,
    origin_notes,
    provenance,
    truncate,
    unequal_trials,
    unjudged,
)
from kdbench.reporting.cells import best_positions, cell_texts, suffixes, summarise
from kdbench.reporting.keys import KEY, printed, records, tiny_paper, tuples
from kdbench.reporting.options import TOLERANCE, View
from kdbench.reporting.paired_tests import shared_means
from kdbench.reporting.rendered import Emphasis, RenderedTable, Row, Section, TableCell, spanning
from kdbench.reporting.tables import versions_of


@dataclass(frozen=True, eq=False)
class PaperTable:
    """A paper's table. ``cells`` has one row per place in print order; ``observations`` are the values they are made of."""

    layout: Layout
    cells: pd.DataFrame
    observations: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def versions(self) -> list[str]:
        """The version behind each run and teacher whose numbers it shows."""
        return versions_of(self.observations)


def paper_tables(
    ids: Sequence[str],
    measured: pd.DataFrame,
    runs: pd.DataFrame,
    absent: Callable[[tuple[str, ...]], str],
    *,
    tiny: bool = False,
) -> list[PaperTable]:
    """The published and the ``measured`` numbers in each table's cells; those of tiny runs stand there alone.

    ``absent`` says for a key why nothing was to be measured. Notes say where the teachers of ``runs`` differ.
    """
    if not ids:
        return []
    cells = pd.concat([_places(layouts().tables[id], tiny=tiny) for id in ids], ignore_index=True)
    relevant = cells[KEY].drop_duplicates().merge(measured, on=KEY)
    cells = cells.join(summarise(relevant, KEY), on=KEY).fillna({"n": 0, "planned": 0})
    unplanned = cells["planned"] == 0
    cells.loc[unplanned, "note"] = [absent(key) for key in tuples(cells.loc[unplanned, KEY])]
    cells = cells.astype({"n": int, "planned": int}).assign(
        values=pd.Series([values if isinstance(values, dict) else {} for values in cells["values"]], dtype=object)
    )
    return [_paper_table(layouts().tables[id], cells[cells["table"] == id], relevant, runs) for id in ids]


def _places(layout: Layout, *, tiny: bool) -> pd.DataFrame:
    """A table's published numbers with the name and the decimals of each place."""
    places = list(layout.places)
    numbers = printed(layout.id)
    if tiny:
        papers = [tiny_paper(paper) for paper in numbers["paper"]]
        numbers = numbers.assign(paper=papers, published=float("nan"), published_sd=float("nan"), printed="")
    return numbers.assign(
        table=layout.id,
        name=[place.name for place in places],
        decimals=[place.decimals for place in places],
        percent=layout.unit == "%",
        enough=[1 if method == "teacher" else 2 for method in numbers["method"]],
    )


def _paper_table(layout: Layout, cells: pd.DataFrame, measured: pd.DataFrame, runs: pd.DataFrame) -> PaperTable:
    shown = cells[KEY].drop_duplicates().merge(measured, on=KEY).drop_duplicates(["run_id", "metric"])
    ids = set(shown["run_id"])
    concerned = runs[runs["run_id"].isin(ids) | runs["teacher_id"].isin(ids)]
    return PaperTable(layout, cells.reset_index(drop=True), shown, origin_notes(concerned))


def render_paper(table: PaperTable, view: View, tolerance: float = TOLERANCE) -> RenderedTable:
    """A table as lines of text. Under the view `published` it is as the paper prints it."""
    layout, start = table.layout, 0
    places, sections, unequal = list(layout.places), [], []
    texts = [place.write(text) for place, text in zip(places, cell_texts(table.cells, view, tolerance), strict=True)]
    behind = suffixes(table.cells, view)
    for band in layout.bands:
        competing = _Competing(table.cells, start, len(band.columns), view)
        emphases = [emphasis for line in emphasise(layout, band, competing.numbers) for emphasis in line]
        end = start + len(emphases)
        cells = [
            TableCell(text, emphasis, suffix=suffix)
            for text, emphasis, suffix in zip(texts[start:end], emphases, behind[start:end], strict=True)
        ]
        sections.append(_section(layout, band, cells, view))
        unequal += competing.notes
        start = end
    if view is View.published:
        text, notes = f"{layouts().papers[layout.paper]}: {layout.caption}", remarks().get(layout.id, ())
    else:
        compared = any(table.cells["printed"])
        text = caption("In %" if layout.unit else "Numbers", view, _origin(table), tolerance, compared=compared)
        notes = (*unjudged(table.cells, view, tolerance), *table.notes, *dict.fromkeys(unequal))
        notes += tuple(truncate(_empty_cells(table, places)))
        notes += remarks().get(layout.id, ()) if compared and view is not View.measured else ()
    return RenderedTable(f"{layout.id}: {layout.title}", tuple(sections), layout.id, layout.stub, text, notes)


class _Competing:
    """The numbers of a band's cells that compete, as exactly as they are shown; none where no accuracies are shown.

    Measured ones are means over shared trials; ``notes`` say where these are not all.
    """

    def __init__(self, cells: pd.DataFrame, start: int, columns: int, view: View) -> None:
        self._cells = records(cells[["published", "values", "decimals"]])
        self._start = start
        self._columns = columns
        self._view = view
        self.notes: list[str] = []

    def numbers(self, group: Places) -> list[float | None]:
        cells = [self._cells[self._start + row * self._columns + column] for row, column in group]
        if self._view in (View.difference, View.verdict):
            return [None] * len(cells)
        if self._view is View.published:
            means = [None if cell["published"] != cell["published"] else cell["published"] for cell in cells]
        else:
            values = pd.DataFrame([cell["values"] for cell in cells], dtype=float).sort_index(axis=1)
            means = shared_means(values.to_numpy().T)
            self.notes += unequal_trials(cell["values"] for cell in cells if any(mean is not None for mean in means))
        return [
            None if mean is None else round(mean, cell["decimals"]) for cell, mean in zip(cells, means, strict=True)
        ]


def _section(layout: Layout, band: Band, cells: Sequence[TableCell], view: View) -> Section:
    parts: dict[str, list[Row]] = {}
    width = len(band.columns)
    for at, axis in enumerate(band.rows):
        label = (TableCell(_label(axis, view)),) if layout.stub else ()
        parts.setdefault(axis.part, []).append((*label, *cells[at * width : (at + 1) * width]))
    return Section(_header(layout, band, view), tuple(tuple(lines) for lines in parts.values()))


def _header(layout: Layout, band: Band, view: View) -> tuple[Row, ...]:
    """The header lines. A label that is printed once for two lines belongs to the lower one."""
    lines: list[Row] = []
    labels = [line.stub or "" for line in band.header]
    for index, line in enumerate(band.header):
        texts = [_label(axis, view) if line.source == "label" else getattr(axis, line.source) for axis in band.columns]
        cells = spanning(texts) if line.source == "group" else tuple(map(TableCell, texts))
        label = "" if labels[index : index + 2] == [labels[index]] * 2 else labels[index]
        lines.append((TableCell(label), *cells) if layout.stub else cells)
    return tuple(lines)


def _label(axis: Axis, view: View) -> str:
    """A row's or column's label; with the paper's own reference number only where its own numbers are shown."""
    cite = f" [{axis.cite}]" if axis.cite is not None and view is View.published else ""
    return (axis.label or "") + cite


def _origin(table: PaperTable) -> str:
    values, cells = table.observations, table.cells
    taught = values["method"] == "teacher"
    return provenance(
        values["protocol"],
        values["score"][~taught],
        cells["n"][cells["method"] != "teacher"],
        table.versions,
        teachers=values["score"][taught & values["value"].notna()],
    )


def _empty_cells(table: PaperTable, places: Sequence[Place]) -> Iterator[str]:
    """Why cells are empty or short of trials, one line per kind of reason. A row that is so as a whole is named once."""
    for lacking, reason in by_reason(zip(places, table.cells["note"], strict=True)):
        rows: dict[int, list[Place]] = {}
        for place in lacking:
            rows.setdefault(id(place.row), []).append(place)
        names = []
        for found in rows.values():
            whole = found[0].row_name and len(found) == len(table.layout.bands[found[0].band].columns)
            names += [found[0].row_name] if whole else [place.name for place in found]
        yield f"{'All cells' if len(lacking) == len(places) else abbreviate(names)}: {reason}"


Places = list[tuple[int, int]]
"""Rows and columns."""
_STYLES: dict[str, Emphasis] = {"bold": Emphasis.best, "underline": Emphasis.second, "none": Emphasis.none}


def emphasise(layout: Layout, band: Band, compare: Callable[[Places], Sequence[float | None]]) -> list[list[Emphasis]]:
    """The emphasis of a band's numbers, row by row, by the paper's own rules.

    ``compare`` gives the numbers of places that the paper compares with each other; None for those that do not compete.
    """
    found = [[Emphasis.none] * len(band.columns) for _ in band.rows]
    for rank, rule in enumerate((layout.highlight.best, layout.highlight.second)):
        if rule is None:
            continue
        for group in _compared(band, rule):
            for at in best_positions(compare(group), rank, _sense(rule, band, group)):
                row, column = group[at]
                found[row][column] = _STYLES[rule.style]
    return found


def _compared(band: Band, rule: Rule) -> list[Places]:
    """The places, as row and column, that are compared with each other."""
    rows, columns = range(len(band.rows)), range(len(band.columns))
    if rule.axis == "column":
        groups = [[(row, column) for row in rows] for column in columns]
    else:
        groups = [[(row, column) for column in columns] for row in rows]
    return [[place for place in group if not _excluded(band, rule, place)] for group in groups]


def _excluded(band: Band, rule: Rule, place: tuple[int, int]) -> bool:
    row, column = band.rows[place[0]], band.columns[place[1]]
    return (row.select.get("method") or column.select.get("method")) in rule.exclude


def _sense(rule: Rule, band: Band, group: Places) -> Literal["max", "min"]:
    if rule.sense == "per column":
        return band.columns[group[0][1]].best or "max" if group else "max"
    return rule.sense
