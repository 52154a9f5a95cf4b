"""The live display on a terminal: one row per network in training, and a bar over all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from kdbench.catalogue.text import one_line
from kdbench.store.live import NetworkAt


WIDEST = 120
"""Columns of the display, so that numbers stay near their names on a wide terminal."""

MARGIN = 2
"""Columns that stay free on the right: the terminal echoes ``^C`` at the end of the last line, which must not break it."""

GAP = 2
BAR = 16
"""Columns between two columns of the table, and of a network's bar."""

LEAST = ("images/s", "bar", "device", "done", "loss")
"""The columns of the table that a narrow terminal does without, the least important first."""


@dataclass
class Column:
    """A column of the table. ``bar``: its cells are shares from 0 to 1, drawn as bars; else they are texts."""

    title: str
    cells: list[Any]
    style: str = ""
    justify: Literal["left", "right"] = "right"
    bar: bool = False

    @property
    def width(self) -> int:
        return BAR if self.bar else max(map(cell_len, (self.title, *self.cells)))

    def drawn(self) -> Iterator[RenderableType]:
        """The cells as rich draws them."""
        for cell in self.cells:
            yield ProgressBar(total=1.0, completed=cell, width=BAR) if self.bar else Text(cell, style=self.style)


@dataclass
class Frame:
    """What is drawn: ``jobs`` are slots, their images per second, and the networks that train there.

    ``share`` of all is done, from 0 to 1; ``reached``, ``times`` and ``keys`` are texts on that, on the time, and on what
    keys do.
    """

    jobs: Sequence[tuple[str, float, Sequence[NetworkAt]]]
    share: float
    reached: str
    times: str
    keys: str


class Display:
    """Draws frames in the columns and rows that the terminal has at that moment.

    ``drawn`` holds the widths of the lines that were drawn last.
    """

    def __init__(self, frame: Callable[[], Frame]) -> None:
        self.frame = frame
        self.drawn: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame, width = self.frame(), min(options.max_width - MARGIN, WIDEST)
        content = Group(*_networks(frame, width, console.height - 4), _bar(frame), _foot(frame, width))
        lines = console.render_lines(content, options.update_width(width), pad=False)
        self.drawn = [Segment.get_line_length(line) for line in lines]
        for line in lines:
            yield from line
            yield Segment.line()


def _bar(frame: Frame) -> Table:
    """The bar over all."""
    grid = Table.grid(padding=(0, GAP), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(ProgressBar(total=1.0, completed=frame.share), Text(frame.reached, style="bold"))
    return grid


def _foot(frame: Frame, width: int) -> Table:
    """The times, and what keys do where there is room beside them."""
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    fits = len(frame.times) + GAP + len(frame.keys) <= width
    grid.add_row(Text(frame.times, style="cyan"), Text(frame.keys if fits else "", style="dim"))
    return grid


Row = tuple[str, float, NetworkAt, bool]
"""Slot, its images per second, a network that trains there, and whether it is the first of them."""


def _networks(frame: Frame, width: int, room: int) -> Iterator[RenderableType]:
    """The table of the networks in training, in ``room`` rows besides its head."""
    jobs = [[(slot, speed, network) for network in networks] for slot, speed, networks in frame.jobs]
    count = sum(map(len, jobs))
    each = next((most for most in range(count, 0, -1) if _rows(jobs, most) <= room), 1)
    rows = [(*row, not at) for job in jobs for at, row in enumerate(job[:each])][: max(0, room)]
    if rows:
        yield _table(_columns(rows), width)
    if count > len(rows):
        yield Text(f"… and {count - len(rows)} more networks in training", style="dim")


def _rows(jobs: Sequence[Sequence[object]], most: int) -> int:
    """The rows of jobs of which ``most`` networks are shown each, and one for what is left out."""
    shown = sum(min(len(job), most) for job in jobs)
    return shown + (shown < sum(map(len, jobs)))


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    networks = [network for _, _, network, _ in rows]
    return {
        "network": Column("network", [one_line(network.label) for network in networks], justify="left"),
        "bar": Column("", [network.part for network in networks], bar=True),
        "done": Column("done", [f"{int(100 * network.part)}%" for network in networks]),
        "epoch": Column("epoch", [network.place for network in networks], "cyan"),
        "loss": Column("loss", ["" if network.loss is None else f"{network.loss:.3f}" for network in networks]),
        "top-1": Column("test top-1", [network.test for network in networks], "green"),
        "device": Column("device", [slot if first else "" for slot, _, _, first in rows], "dim", "left"),
        "images/s": Column("images/s", [f"{speed:,.0f}" if first and speed else "" for _, speed, _, first in rows]),
    }


def _table(columns: dict[str, Column], width: int) -> Table:
    """The table without the columns for which there is no room; only then are names cut, in their middle."""
    for name in LEAST:
        if _needed(columns) > width:
            del columns[name]
    names = columns["network"]
    room = names.width - max(0, _needed(columns) - width)
    names.cells = [middle_cut(name, room) for name in names.cells]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns.values():
        table.add_column(column.title, justify=column.justify, no_wrap=True, overflow="ellipsis")
    for cells in zip(*(column.drawn() for column in columns.values()), strict=True):
        table.add_row(*cells)
    return table


def _needed(columns: dict[str, Column]) -> int:
    return sum(column.width for column in columns.values()) + GAP * (len(columns) - 1)


def middle_cut(label: str, width: int) -> str:
    """The label in at most ``width`` characters. Of a run's, method and trial stay: ``resnet3…esnet8x4 kd+crd #0``."""
    if len(label) <= width:
        return label
    words = label.rsplit(" ", 2)
    kept = f" {words[1]} {words[2]}" if len(words) == 3 and words[2].startswith("#") else ""
    room = max(0, width - len(kept) - 1)
    start = (room + 1) // 2
    return f"{label[:start]}…{label[len(label) - len(kept) - (room - start) :]}"


class LiveDisplay(Live):
    """A live display that leaves nothing behind when the terminal is resized.

    rich moves up by as many lines as it has drawn. Terminals that break lines anew when they become narrower hold more by
    then; these are erased first. One thread draws at a time, so ``say`` leaves texts to the next refresh.
    """

    def __init__(self, display: Display) -> None:
        super().__init__(display, console=Console(stderr=True), transient=True, vertical_overflow="crop")
        self.display = display
        self.said: deque[str] = deque()

    def say(self, text: str) -> None:
        """Print a text above the display."""
        self.said.append(text)

    def refresh(self) -> None:
        """Print what was said, and draw the display again."""
        while self.said:
            self.console.print(self.said.popleft(), markup=False, highlight=False, soft_wrap=True)
        super().refresh()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Also erase the rows that a narrower terminal has added."""
        added = sum(max(0, length - 1) // self.console.width for length in self.display.drawn)
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        return [Control(ControlType.CARRIAGE_RETURN, *up * added), *super().process_renderables(renderables)]
