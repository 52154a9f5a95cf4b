"""Progress on the terminal: of runs, and of downloads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdbench.catalogue.text import one_line, printable
from kdbench.cli.options import heard_or_not, say
from kdbench.cli.plan import duration
from kdbench.execution.heartbeats import label_of, title_of
from kdbench.planning.cost import measurement_work, student_work, teacher_work
from kdbench.planning.plan import Plan
from kdbench.store.live import NetworkAt
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Stage
from kdbench.suite.suite import Suite


if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kdbench.datafiles.download import ProgressReporter


PLAIN_SECONDS = 10.0

WIDEST = 100
"""Columns of the display, so that numbers stay near their labels on a wide terminal."""


@dataclass
class NetworkProgress(NetworkAt):
    """One network in training, and what its whole training costs, in multiply-accumulates."""

    cost: float = 0.0

    def reach(self, event: dict[str, Any]) -> float:
        """Take note of what an event tells of its training; returns the cost so far."""
        self.advance(event)
        return self.cost * (self.epoch + self.share + self.initial_epochs) / (self.epochs + self.initial_epochs)


@dataclass
class SlotStatus:
    """The job that a slot runs."""

    title: str
    ids: list[str]
    speed: float = 0.0
    printed: float = 0.0


@dataclass
class Totals:
    """Progress of a plan, in multiply-accumulates and in runs; ``earlier`` is what a previous session had trained."""

    total: float
    runs: int
    done: dict[str, float] = field(default_factory=dict)
    finished: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    earlier: dict[str, float] = field(default_factory=dict)

    def left(self) -> str:
        """The time left, from the pace so far."""
        done = sum(self.done.values())
        fresh = done - sum(self.earlier.values())
        elapsed = time.monotonic() - self.started
        if fresh <= 0 or elapsed < 2:
            return "time left unknown"
        hours = (self.total - done) * elapsed / fresh / 3600
        return f"about {duration(max(0.0, hours))} left"


class RunProgress:
    """Shows what a pool does: ``listen`` takes its events. ``on_interrupt`` tells what Ctrl-C does."""

    def __init__(self, suites: Sequence[Suite], on_interrupt: str = "save and stop") -> None:
        self.on_interrupt = on_interrupt
        self.labels = {run.id: run.label for suite in suites for run in suite.runs}
        self.live: Any = None
        self._planned(Plan((), (), 0, 0))

    def _planned(self, plan: Plan) -> None:
        runs = [run for cohort in plan.cohorts for run in cohort.runs]
        self.networks = {spec.id: self._network(spec) for spec in (*plan.teachers, *runs, *plan.measurements)}
        self.counted = {run.id for run in runs}
        self.totals = Totals(sum(network.cost for network in self.networks.values()), plan.runs)
        self.slots: dict[str, SlotStatus] = {}
        self.resumed: set[str] = set()

    def _network(self, spec: Stage | RunSpec | ProbeSpec | SimilaritySpec) -> NetworkProgress:
        if isinstance(spec, RunSpec):
            work = student_work(spec)
        elif isinstance(spec, ProbeSpec | SimilaritySpec):
            work = measurement_work(spec)
        else:
            work = teacher_work(spec)
        return NetworkProgress(label_of(spec, self.labels), cost=work.macs)

    def _show(self) -> None:
        if sys.stderr.isatty() and not self.live:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), get_renderable=self._render, refresh_per_second=4)
            with heard_or_not():
                self.live.start()

    def close(self) -> None:
        """End the display."""
        if self.live:
            with heard_or_not():
                self.live.stop()

    def say(self, text: str) -> None:
        """Print one line above the display."""
        text = printable(text)
        if self.live:
            with heard_or_not():
                self.live.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def listen(self, slot: str, event: dict[str, Any]) -> None:
        """Record and show one event."""
        match event["event"]:
            case "planned":
                self._planned(event["plan"])
                self._show()
            case "started":
                self._started(slot, event)
            case "epoch" | "under way":
                self._trained(slot, event)
            case "resumed":
                self._resumed(event)
            case "finished":
                self._finished(event)
            case "failed":
                self.totals.failed += 1
                network = self.networks.get(event["id"])
                self.say(f"FAILED {network.label if network else event['id']}: {event['reason']}")
            case "message":
                self.say(event["text"])
            case "done" | "unusable" | "exit":
                self.slots.pop(slot, None)

    def _started(self, slot: str, event: dict[str, Any]) -> None:
        alone = event["measurement"] or event["teacher"]
        specs = [alone] if alone else event["runs"]
        for spec in specs:
            self.networks.setdefault(spec.id, self._network(spec))
        self.begin(slot, title_of(event, self.labels), [spec.id for spec in specs], quiet=event["waited"])

    def begin(self, slot: str, title: str, ids: list[str], *, quiet: bool = False) -> None:
        """A job of networks that are known has started on a slot."""
        self.slots[slot] = SlotStatus(title, ids)
        if not self.live and not quiet:
            self.say(f"[{slot}] {title}: starts")

    def _trained(self, slot: str, event: dict[str, Any]) -> None:
        network = self.networks[event["id"]]
        self.totals.done[event["id"]] = network.reach(event)
        if event["id"] in self.resumed:
            self.resumed.remove(event["id"])
            if network.share:  # nearly all of it was there before: only the loop knows what share that is
                self.totals.earlier[event["id"]] = self.totals.done[event["id"]]
        work = self.slots.get(slot)
        if work is None:
            return
        work.speed = event["images_per_second"]
        now = time.monotonic()
        if not self.live and (now - work.printed > PLAIN_SECONDS):
            work.printed = now
            loss = f", loss {network.loss:.3f}" if network.loss is not None else ""
            top1 = f", top-1 {network.top1:.2f}" if network.top1 is not None else ""
            where = f"epoch {network.place}{loss}{top1}, {work.speed:,.0f} images/s"
            self.say(f"[{slot}] {work.title}: {where}; {self._summary()}")

    def _resumed(self, event: dict[str, Any]) -> None:
        network = self.networks[event["id"]]
        self.resumed.add(event["id"])
        if earlier := network.reach(event):
            self.totals.earlier[event["id"]] = earlier
        self.say(f"{network.label}: {event['text']}")

    def _finished(self, event: dict[str, Any]) -> None:
        network = self.networks[event["id"]]
        self.totals.done[event["id"]] = network.cost
        self.totals.finished += event["id"] in self.counted
        if not self.live:
            top1 = f": top-1 {event['top1']:.2f}" if event["top1"] is not None else ""
            self.say(f"finished {network.label}{top1}")

    def _summary(self) -> str:
        runs = [f"{self.totals.finished} of {self.totals.runs} runs"] if self.totals.runs else []
        failed = [f"{self.totals.failed} failed"] if self.totals.failed else []
        return ", ".join([*runs, *failed, self.totals.left()])

    def _render(self) -> Any:
        """A line for each slot and each network: what is too long for the terminal is cut, so that nothing wraps."""
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.table import Table
        from rich.text import Text

        def line(left: Text, *right: Text) -> Table:
            table = Table.grid(padding=(0, 2), expand=True)
            table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
            for text in right:
                table.add_column(min_width=len(text), justify="right", no_wrap=True)
            table.add_row(left, *right)
            return table

        lines = []
        for slot, work in sorted(self.slots.items()):
            title = Text(one_line(f"[{slot}] {work.title}"), style="bold")
            lines.append(line(title, Text(f"{work.speed:,.0f} images/s")))
            for id in work.ids[:20]:
                network = self.networks[id]
                loss = f"loss {network.loss:.3f}" if network.loss is not None else ""
                top1 = f"top-1 {network.top1:.2f}" if network.top1 is not None else ""
                label = Text("  " + one_line(network.label))
                lines.append(
                    line(label, Text(network.place, style="cyan"), Text(f"{loss:10}"), Text(f"{top1:11}", "green"))
                )
            if len(work.ids) > 20:
                lines.append(line(Text(f"  … and {len(work.ids) - 20} more", style="dim")))
        keys = Text(f"Ctrl-C: {self.on_interrupt}", style="dim")
        return Constrain(Group(*lines, line(Text(self._summary(), style="bold cyan"), keys)), WIDEST)


STEP = 10
"""Percent between two plain lines."""


@contextmanager
def download_progress() -> Iterator[ProgressReporter]:
    """A listener for as long as files are fetched."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield BarProgress(progress)


class PlainProgress:
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


class BarProgress:
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
