"""Tells the results folder what this process is at, while it runs a plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

from kdbench import __version__
from kdbench.store.live import Heartbeat, JobAt, NetworkAt, batch_job, beat, end_beating, forget_the_dead
from kdbench.store.liveness import Process
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Stage, stage_label
from kdbench.suite.suite import Suite


BEAT_SECONDS = 10.0
"""A heartbeat is renewed so often, and when a job starts or ends."""

PAUSE_SECONDS = 0.5
"""Between two heartbeats at least, however short the jobs are."""


def label_of(spec: Stage | RunSpec | ProbeSpec | SimilaritySpec, labels: dict[str, str]) -> str:
    """One line on what is trained or measured; ``labels``: of the suites' runs, by id."""
    if isinstance(spec, RunSpec):  # one that no suite names teaches another
        return labels.get(spec.id, f"auxiliary {spec.student} #{spec.trial}")
    if isinstance(spec, ProbeSpec | SimilaritySpec):
        return spec.label
    return f"teacher {stage_label(spec)}"


def title_of(job: dict[str, Any], labels: dict[str, str]) -> str:
    """One line on a job that has started, from the event that says so."""
    if alone := job["measurement"] or job["teacher"]:
        return label_of(alone, labels)
    runs: Sequence[RunSpec] = job["runs"]
    teacher = next((f"of {run.teacher.network}" for run in runs if run.teacher), "without teacher")
    return f"{len(runs)} student{'s' if len(runs) > 1 else ''} {teacher}, trial {runs[0].trial}"


@dataclass
class _Slot:
    title: str
    started: float
    networks: dict[str, NetworkAt]
    speed: float = 0.0


@dataclass
class Heartbeats:
    """Listens to the events of a run, and leaves heartbeats from a thread of its own: a slow disk holds nothing up.

    Each event goes on to ``on_event``.
    """

    store: Store
    suites: Sequence[Suite]
    on_event: Callable[[str, dict[str, Any]], None] = lambda slot, event: None
    clock: Callable[[], float] = time.monotonic
    slots: dict[str, _Slot] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    done: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.labels = {run.id: run.label for suite in self.suites for run in suite.runs}
        self.process = Process.current()
        self.started = self.clock()
        self._changing = threading.Lock()
        self._due = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def __enter__(self) -> Self:
        forget_the_dead(self.store)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._due.set()
        self._thread.join(BEAT_SECONDS)
        end_beating(self.store, self.process)

    def listen(self, slot: str, event: dict[str, Any]) -> None:
        """Take note of one event, and pass it on."""
        with self._changing:
            self._note(slot, event)
        if event["event"] in ("planned", "started", "done", "exit"):
            self._due.set()
        self.on_event(slot, event)

    def _note(self, slot: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "planned":
                plan = event["plan"]
                runs = (run for cohort in plan.cohorts for run in cohort.runs)
                self.left = {spec.id for spec in (*plan.teachers, *runs, *plan.measurements)}
            case "started":
                alone = event["measurement"] or event["teacher"]
                specs = [alone] if alone else event["runs"]
                networks = {spec.id: NetworkAt(label=label_of(spec, self.labels)) for spec in specs}
                self.slots[slot] = _Slot(title_of(event, self.labels), self.clock(), networks)
            case "epoch" | "under way" | "resumed" if work := self.slots.get(slot):
                work.speed = event.get("images_per_second", work.speed)
                if network := work.networks.get(event["id"]):
                    network.advance(event)
            case "finished" | "failed":
                self.left.discard(event["id"])
                self.done += event["event"] == "finished"
                self.failed += event["event"] == "failed"
            case "done" | "unusable" | "exit":
                self.slots.pop(slot, None)

    def heartbeat(self) -> Heartbeat:
        """What there is to say now."""
        with self._changing:
            now = self.clock()
            slots = {
                name: JobAt(
                    title=work.title,
                    seconds=now - work.started,
                    images_per_second=work.speed,
                    networks=deepcopy(work.networks),
                )
                for name, work in self.slots.items()
            }
            return Heartbeat(
                **self.process._asdict(),
                version=__version__,
                batch_job=batch_job(),
                suites=[suite.name for suite in self.suites],
                seconds=now - self.started,
                done=self.done,
                failed=self.failed,
                left=len(self.left),
                slots=slots,
            )

    def _beat(self) -> None:
        while True:
            self._ending.wait(PAUSE_SECONDS)
            self._due.clear()
            if self._ending.is_set():
                return
            beat(self.store, self.heartbeat())
            self._due.wait(BEAT_SECONDS)
