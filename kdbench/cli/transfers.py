"""How far a download is: a bar on a terminal, plain lines elsewhere. Both on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdbench.cli.streams import say


if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kdbench.datafiles.listener import Listener


STEP = 10
"""Percent between two plain lines."""


@contextmanager
def transfers() -> Iterator[Listener]:
    """A listener for as long as files are fetched."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bars(progress)


class Lines:
    """A line for every tenth of a file, or every 100 MB where its size is unknown."""

    def __init__(self) -> None:
        self.shown: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Print a line if the file is a step further."""
        step = 100 * done // total // STEP if total else done // 100_000_000
        if step > self.shown.get(name, 0):
            self.shown[name] = step
            text = f"{step * STEP} % of {total:,}" if total else f"{done:,}"
            say(f"{name}: {text} bytes")

    def note(self, text: str) -> None:
        """Print it."""
        say(text)


class Bars:
    """A bar for every file."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def progress(self, name: str, done: int, total: int | None) -> None:
        """Move the file's bar."""
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total)
        self.bars.update(self.tasks[name], completed=done, total=total)

    def note(self, text: str) -> None:
        """Print it above the bars."""
        self.bars.console.print(text, markup=False, highlight=False)
