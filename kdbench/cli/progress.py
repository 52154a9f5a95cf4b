"""Progress on the terminal: of runs, and of downloads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kdbench.catalogue.text import one_line, printable
from kdbench.cli.options import heard_or_not, say
from kdbench.cli.plan import duration
from kdbench.planning.cost import measurement_cost, student_cost, teacher_cost
from kdbench.planning.plan import Plan
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Stage, stage_label
from kdbench.suite.suite import Suite


if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kdbench.datafiles.download import ProgressReporter


PLAIN_SECONDS = 10.0


@dataclass
class NetworkProgress:
    """One network in training."""

    label: str
    cost: float
    epoch: int = 0
    epochs: int = 0
    initial_epochs: int = 0
    share: float = 0.0
    loss: float | None = None
    top1: float | None = None

    def reach(self, event: dict[str, Any]) -> float:
        """Take note of the epochs that an event tells of, and of the share of the next; returns the cost so far."""
        self.epoch, self.epochs, self.initial_epochs = event["epoch"], event["epochs"], event["initial_epochs"]
        self.share = event.get("share", 0.0)
        return self.cost * (self.epoch + self.share + self.initial_epochs) / (self.epochs + self.initial_epochs)

    @property
    def place(self) -> str:
        """The epochs behind it of how many, e.g. ``3/240``, ``3.25/240`` on the way, or ``3/30 (initial)``."""
        if not self.epochs:
            return "waiting"
        done, digits = self.epoch + self.share, 2 if self.share else 0
        if self.initial_epochs and done <= 0:
            return f"{done + self.initial_epochs:.{digits}f}/{self.initial_epochs} (initial)"
        return f"{done:.{digits}f}/{self.epochs}"


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
    """Listens to a pool. Use it as a context manager; ``listen`` takes the pool's events."""

    def __init__(self, suites: Sequence[Suite]) -> None:
        self.labels = {run.id: run.label for suite in suites for run in suite.runs}
        self.live: Any = None
        self._planned(Plan((), (), 0, 0))

    def _planned(self, plan: Plan) -> None:
        self.networks: dict[str, NetworkProgress] = {}
        for teacher in plan.teachers:
            self.networks[teacher.id] = NetworkProgress(teacher_label(teacher), teacher_cost(teacher))
        for cohort in plan.cohorts:
            for run in cohort.runs:
                self.networks[run.id] = NetworkProgress(
                    self.labels.get(run.id, auxiliary_label(run)), student_cost(run)
                )
        for spec in plan.measurements:
            self.networks[spec.id] = NetworkProgress(spec.label, measurement_cost(spec))
        self.counted = {run.id for cohort in plan.cohorts for run in cohort.runs}
        self.totals = Totals(sum(member.cost for member in self.networks.values()), plan.runs)
        self.slots: dict[str, SlotStatus] = {}
        self.resumed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def _show(self) -> None:
        if sys.stderr.isatty() and not self.live:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), get_renderable=self._render, refresh_per_second=4)
            with heard_or_not():
                self.live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                self._started(slot, event["teacher"], event["runs"], event["measurement"], quiet=event["waited"])
            case "epoch" | "under way":
                self._trained(slot, event)
            case "resumed":
                self._resumed(event)
            case "finished":
                self._finished(event)
            case "failed":
                self.totals.failed += 1
                self.say(f"FAILED {self._label(event['id'])}: {event['reason']}")
            case "message":
                self.say(event["text"])
            case "done" | "exit":
                self.slots.pop(slot, None)

    def _started(
        self,
        slot: str,
        teacher: Stage | None,
        runs: Sequence[RunSpec],
        measurement: ProbeSpec | SimilaritySpec | None,
        *,
        quiet: bool,
    ) -> None:
        if measurement:
            self.slots[slot] = SlotStatus(measurement.label, [measurement.id])
        elif teacher:
            self.networks.setdefault(teacher.id, NetworkProgress(teacher_label(teacher), teacher_cost(teacher)))
            self.slots[slot] = SlotStatus(teacher_label(teacher), [teacher.id])
        else:
            for run in runs:
                self.networks.setdefault(run.id, NetworkProgress(auxiliary_label(run), student_cost(run)))
            name = next((run.teacher.network for run in runs if run.teacher), "")
            title = f"{len(runs)} student{'s' if len(runs) > 1 else ''}" + (
                f" of {name}" if name else " without teacher"
            )
            self.slots[slot] = SlotStatus(f"{title}, trial {runs[0].trial}", [run.id for run in runs])
        if not self.live and not quiet:
            self.say(f"[{slot}] {self.slots[slot].title}: starts")

    def _trained(self, slot: str, event: dict[str, Any]) -> None:
        member = self.networks[event["id"]]
        self.totals.done[event["id"]] = member.reach(event)
        if event["id"] in self.resumed:
            self.resumed.remove(event["id"])
            if member.share:  # nearly all of it was there before: only the loop knows what share that is
                self.totals.earlier[event["id"]] = self.totals.done[event["id"]]
        member.loss = event.get("loss", member.loss)
        member.top1 = member.top1 if event.get("top1") is None else event["top1"]
        work = self.slots.get(slot)
        if work is None:
            return
        work.speed = event["images_per_second"]
        now = time.monotonic()
        if not self.live and (now - work.printed > PLAIN_SECONDS):
            work.printed = now
            loss = f", loss {member.loss:.3f}" if member.loss is not None else ""
            top1 = f", top-1 {member.top1:.2f}" if member.top1 is not None else ""
            where = f"epoch {member.place}{loss}{top1}, {work.speed:,.0f} images/s"
            self.say(f"[{slot}] {work.title}: {where}; {self._summary()}")

    def _resumed(self, event: dict[str, Any]) -> None:
        member = self.networks[event["id"]]
        self.resumed.add(event["id"])
        if earlier := member.reach(event):
            self.totals.earlier[event["id"]] = earlier
        self.say(f"{member.label}: {event['text']}")

    def _finished(self, event: dict[str, Any]) -> None:
        member = self.networks[event["id"]]
        self.totals.done[event["id"]] = member.cost
        self.totals.finished += event["id"] in self.counted
        if not self.live:
            self.say(f"finished {member.label}" + (f": top-1 {event['top1']:.2f}" if event["top1"] is not None else ""))

    def _label(self, id: str) -> str:
        return self.networks[id].label if id in self.networks else id

    def _summary(self) -> str:
        runs = [f"{self.totals.finished} of {self.totals.runs} runs"] if self.totals.runs else []
        failed = [f"{self.totals.failed} failed"] if self.totals.failed else []
        return ", ".join([*runs, *failed, self.totals.left()])

    def _render(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for slot, work in sorted(self.slots.items()):
            title = Text(one_line(f"[{slot}] {work.title}"), style="bold")
            table.add_row(title, "", "", "", Text(f"{work.speed:,.0f} images/s"))
            for id in work.ids[:20]:
                member = self.networks[id]
                table.add_row(
                    Text("  " + one_line(member.label)),
                    Text(member.place, style="cyan"),
                    Text(f"loss {member.loss:.3f}" if member.loss is not None else ""),
                    Text(f"top-1 {member.top1:.2f}" if member.top1 is not None else "", style="green"),
                    "",
                )
            if len(work.ids) > 20:
                table.add_row(Text(f"  … and {len(work.ids) - 20} more", style="dim"), "", "", "", "")
        table.add_row(Text(self._summary(), style="bold cyan"), "", "", "", Text("Ctrl-C: save and stop", style="dim"))
        return table


def teacher_label(spec: Stage) -> str:
    """One line for a teacher."""
    return f"teacher {stage_label(spec)}"


def auxiliary_label(spec: RunSpec) -> str:
    """One line for a run that no suite names: its student teaches another."""
    return f"auxiliary {spec.student} #{spec.trial}"


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
