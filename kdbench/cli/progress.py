"""Progress on the terminal: of runs, and of downloads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kdbench.catalogue.text import printable
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

    from kdbench.cli.display import Frame, LiveDisplay
    from kdbench.datafiles.download import ProgressReporter


PLAIN_SECONDS, LONGEST_PLAIN_SECONDS = 10.0, 600.0
"""Between two plain lines of progress: a tenth of the time so far, within these."""

LONGEST_FORECAST = 365 * 86_400.0
"""Seconds left beyond which a forecast from the pace so far means nothing."""


@dataclass
class NetworkProgress(NetworkAt):
    """One network in training, and what its whole training costs, in multiply-accumulates.

    ``earlier`` is what was trained before this session, ``trained`` all so far.
    """

    cost: float = 0.0
    trained: float = 0.0
    earlier: float = 0.0
    failed: bool = False

    def reach(self, event: dict[str, Any]) -> None:
        """Take note of what an event tells of its training."""
        self.advance(event)
        self.trained = self.cost * self.part


@dataclass
class SlotStatus:
    """The job that a slot runs."""

    title: str
    ids: list[str]
    speed: float = 0.0


class RunProgress:
    """Shows what a pool does: ``listen`` takes its events. ``on_interrupt`` tells what Ctrl-C does.

    ``clock`` gives seconds since the epoch; times are those of the day where the command runs.
    """

    def __init__(
        self,
        suites: Sequence[Suite],
        on_interrupt: str = "save and stop",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_interrupt = on_interrupt
        self.clock = clock
        self.labels = {run.id: run.label for suite in suites for run in suite.runs}
        self.live: LiveDisplay | None = None
        self.started = clock()
        self.printed = 0.0
        self._planned(Plan((), (), 0, 0))

    def _planned(self, plan: Plan) -> None:
        runs = [run for cohort in plan.cohorts for run in cohort.runs]
        self.networks = {spec.id: self._network(spec) for spec in (*plan.teachers, *runs, *plan.measurements)}
        self.unfinished = {run.id for run in runs}
        self.runs = plan.runs
        self.begun = self.clock()
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
        if not sys.stderr.isatty() or self.live:
            return
        from kdbench.cli.display import Display, LiveDisplay

        live = LiveDisplay(Display(self.frame))
        if live.console.is_interactive:
            self.live = live
            with heard_or_not():
                live.start()

    def close(self) -> None:
        """End the display."""
        if self.live:
            with heard_or_not():
                self.live.stop()

    def say(self, text: str) -> None:
        """Print one line above the display."""
        text = printable(text)
        if self.live:
            self.live.say(text)
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
                self._failed(event)
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
        network.reach(event)
        if event["id"] in self.resumed:
            self.resumed.remove(event["id"])
            if network.share:  # nearly all of it was there before: only the loop knows what share that is
                network.earlier = network.trained
        if job := self.slots.get(slot):
            job.speed = event["images_per_second"]
            if not self.live:
                self._print_progress(slot, job, network)

    def _print_progress(self, slot: str, job: SlotStatus, network: NetworkProgress) -> None:
        """A plain line, where the last one is long enough ago: the longer the work takes, the rarer."""
        now = self.clock()
        if now - self.printed < min(max(PLAIN_SECONDS, (now - self.started) / 10), LONGEST_PLAIN_SECONDS):
            return
        self.printed = now
        loss = f", loss {network.loss:.3f}" if network.loss is not None else ""
        top1 = f", top-1 {network.test}" if network.top1 is not None else ""
        where = f"epoch {network.place}{loss}{top1}, {job.speed:,.0f} images/s"
        self.say(f"[{slot}] {job.title}: {where}; {self.reached()}, {self.times()}")

    def _resumed(self, event: dict[str, Any]) -> None:
        network = self.networks[event["id"]]
        self.resumed.add(event["id"])
        network.reach(event)
        network.earlier = network.trained
        self.say(f"{network.label}: {event['text']}")

    def _finished(self, event: dict[str, Any]) -> None:
        network = self.networks[event["id"]]
        network.trained, network.failed = network.cost, False
        self.unfinished.discard(event["id"])
        if not self.live:
            top1 = f": top-1 {event['top1']:.2f}" if event["top1"] is not None else ""
            self.say(f"finished {network.label}{top1}")

    def _failed(self, event: dict[str, Any]) -> None:
        network = self.networks.setdefault(event["id"], NetworkProgress(event["id"]))
        network.failed = True
        self.say(f"FAILED {network.label}: {event['reason']}")

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1; what is left of networks that have failed is no work."""
        return self._trained_macs / total if (total := self._total_macs) else 0.0

    @property
    def _known(self) -> list[NetworkProgress]:
        return [*self.networks.values()]  # the display's thread reads while others may come

    @property
    def _trained_macs(self) -> float:
        return sum(network.trained for network in self._known)

    @property
    def _total_macs(self) -> float:
        return sum(network.trained if network.failed else network.cost for network in self._known)

    def reached(self) -> str:
        """``42%, 5 of 12 runs, 1 failed``: how far the work is."""
        runs = [f"{self.runs - len(self.unfinished)} of {self.runs} runs"] if self.runs else []
        failed = sum(network.failed for network in self._known)
        return ", ".join([f"{int(100 * self.share)}%", *runs, *([f"{failed} failed"] if failed else [])])

    def frame(self) -> Frame:
        """What the display shows now."""
        from kdbench.cli.display import Frame

        jobs = []
        for slot, job in sorted([*self.slots.items()]):
            networks = [self.networks[id] for id in job.ids]
            jobs.append((slot, job.speed, [network for network in networks if not network.failed]))
        return Frame(jobs, self.share, self.reached(), self.times(), f"Ctrl-C: {self.on_interrupt}")

    def elapsed(self) -> str:
        """``4 min``, since the display began."""
        return duration((self.clock() - self.started) / 3600)

    def times(self) -> str:
        """``4 min elapsed, about 3 min left, ends 14:32``, from the pace so far."""
        now, elapsed = self.clock(), f"{self.elapsed()} elapsed"
        left = self._seconds_left(now)
        if left is None:
            return f"{elapsed}, time left unknown"
        return f"{elapsed}, about {duration(left / 3600)} left, ends {time_of_day(now + left, now)}"

    def _seconds_left(self, now: float) -> float | None:
        fresh = self._trained_macs - sum(network.earlier for network in self._known)
        elapsed = now - self.begun
        if fresh <= 0 or elapsed < 2:
            return None
        left = (self._total_macs - self._trained_macs) * elapsed / fresh
        return left if left < LONGEST_FORECAST else None


def time_of_day(moment: float, now: float) -> str:
    """A moment in seconds since the epoch as ``14:32``, with the day where that is not today's: ``Sun 6 Dec 14:32``."""
    at, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(now)
    days = (at.date() - today.date()).days
    day = "" if not days else f"{at:%a} " if 0 < days < 7 else f"{at:%a} {at.day} {at:%b} "
    return f"{day}{at:%H:%M}"


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
