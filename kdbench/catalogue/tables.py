"""The 24 tables of the three papers: their names, layouts and notes (tables.yaml, notes.yaml)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from kdbench.catalogue.text import normalise, unknown
from kdbench.errors import BadInput


_PRINTED = {"ega": "12345ABCD", "sskd": ("1", "2", "3", "4", "5", "6", "S1"), "semckd": "23456789"}
TABLES: tuple[str, ...] = tuple(f"{paper}-{number}" for paper, numbers in _PRINTED.items() for number in numbers)


def table_name(name: str) -> str:
    """The canonical name of a table, such as ``sskd-S1`` for ``SSKD_s1``. Raises BadInput with the nearest name."""
    found = {normalise(table): table for table in TABLES}.get(normalise(name))
    if found is None:
        raise BadInput(unknown("table", name, TABLES, "tables"))
    return found


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeaderLine(_Part):
    """A printed header line: the text above the labels (None: no labels), and what of each column fills it."""

    stub: str | None
    source: Literal["group", "label", "teacher_label", "student_label"] = Field(alias="from")


class Axis(_Part):
    """A row or column: what it selects, and how it is printed."""

    select: dict[str, str]
    label: str | None = None
    group: str = ""
    part: str = ""
    cite: int | None = None
    nth: int | None = None
    decimals: int | None = None
    best: Literal["max", "min"] | None = None
    teacher_label: str = ""
    student_label: str = ""
    cell: str | None = None


class Rule(_Part):
    """How a table marks its best numbers: the axis, the better direction, excluded methods, the evidence."""

    style: Literal["bold", "underline", "none"]
    axis: Literal["row", "column"]
    sense: Literal["max", "min", "per column"]
    evidence: str
    exclude: tuple[str, ...] = ()


class Highlight(_Part):
    """The rules for the best and the second best number."""

    best: Rule | None = None
    second: Rule | None = None


class Band(_Part):
    """Header lines, columns and rows; a table may stack several."""

    header: tuple[HeaderLine, ...]
    columns: tuple[Axis, ...]
    rows: tuple[Axis, ...]


class Layout(_Part):
    """A printed table. ``unit`` is `%` or None; ``decimals`` are what a number has unless its row or column says else."""

    paper: str
    table: str
    title: str
    caption: str
    fixed: dict[str, str]
    highlight: Highlight
    unit: Literal["%"] | None
    decimals: int | None
    cell: str
    bands: tuple[Band, ...]

    @property
    def id(self) -> str:
        return f"{self.paper}-{self.table}"

    @property
    def stub(self) -> bool:
        """Whether the table has a column of labels."""
        return self.bands[0].header[0].stub is not None

    @property
    def places(self) -> Iterator[Place]:
        """All cells in print order, row by row."""
        for index, band in enumerate(self.bands):
            for row in band.rows:
                for column in band.columns:
                    yield Place(self, index, row, column)


@dataclass(frozen=True, eq=False)
class Place:
    """One cell of a printed table."""

    layout: Layout
    band: int
    row: Axis
    column: Axis

    @property
    def select(self) -> dict[str, str]:
        """The key of the cell's record, unique in its table but for repeated settings."""
        return {**self.layout.fixed, **self.row.select, **self.column.select}

    @property
    def occurrence(self) -> int:
        """The index among records that repeat a setting."""
        return self.column.nth or self.row.nth or 0

    @property
    def decimals(self) -> int:
        """Digits behind the point of a number in this place."""
        return next(d for d in (self.row.decimals, self.column.decimals, self.layout.decimals, 2) if d is not None)

    @property
    def name(self) -> str:
        """The cell's row and column in words, with the column's group if its label is ambiguous."""
        alike = [each for each in self.layout.bands[self.band].columns if each.label == self.column.label]
        group = self.column.group if len(alike) > 1 else ""
        return " / ".join(part for part in (self.row_name, group, self.column.label) if part)

    @property
    def row_name(self) -> str:
        """The row in words: its label, or the networks that stand for it; a row without either is its table's only one."""
        pair = f"{self.row.student_label} & {self.row.teacher_label}" if self.row.student_label else ""
        return self.row.label or pair or ("Student" if self.row.label == "" else "")

    def write(self, number: str) -> str:
        """The cell's text around a number: Table 9 of SemCKD has the student's name before its accuracy."""
        template = self.row.cell or self.column.cell or self.layout.cell
        labels = {
            key: getattr(self.column, key) or getattr(self.row, key) for key in ("teacher_label", "student_label")
        }
        return template.partition("{value}")[0].format(**labels) + number


@dataclass(frozen=True)
class Layouts:
    """All printed tables, by id in the order of the papers; the papers' titles; how missing values are printed."""

    tables: dict[str, Layout]
    papers: dict[str, str]
    nan: str
    dash: str


@cache
def layouts() -> Layouts:
    """The content of tables.yaml."""
    data = _read("tables.yaml")
    found = {layout.id: layout for layout in map(_layout, data["tables"])}
    return Layouts(
        tables={id: found[id] for id in TABLES},
        papers={paper: about["title"] for paper, about in data["papers"].items()},
        **data["missing"],
    )


@cache
def remarks() -> dict[str, tuple[str, ...]]:
    """Remarks on the published numbers, by table."""
    return {id: tuple(texts) for id, texts in _read("notes.yaml").items()}


def _layout(raw: dict[str, Any]) -> Layout:
    """A table with its only band, if it does not stack several."""
    band = {key: raw.pop(key) for key in ("header", "columns", "rows") if key in raw}
    return Layout.model_validate(raw if "bands" in raw else {**raw, "bands": [band]})


def _read(name: str) -> Any:
    text = files("kdbench.catalogue").joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
