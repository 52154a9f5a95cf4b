"""How long workers have said nothing, and what follows from that.

A worker's second thread says every few seconds that it is alive. So one that says nothing is stopped, or waits for the
system, and is ended after a while; one that lives and does not come further may be at a long step, and is only told of.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdbench.store.lock import process_state


QUIET_SECONDS = 60.0
"""Of silence, before it is told."""

HUNG_SECONDS = 600.0
"""Of silence, before the worker is killed; and without progress, before that is told."""

STOP_SECONDS = 10.0
"""Of silence after a request to stop, before the worker is killed."""

STEP_SECONDS = 30.0
"""Without an end of the step after a request to stop, before that is told; it is killed after HUNG_SECONDS."""


@dataclass
class Pause:
    """Seconds since a worker said anything, and since its job came further, and what has been told of them."""

    quiet: float = 0.0
    idle: float = 0.0
    told_quiet: bool = False
    told_idle: bool = False
    ready: bool = False


@dataclass(frozen=True)
class Finding:
    """What is the matter with the worker of a slot; ``fatal``: it is to be killed."""

    slot: str
    text: str
    fatal: bool = False


class Watch:
    """Measures pauses. The time in which this process was stopped itself, or was slow to look, does not count."""

    def __init__(self) -> None:
        self.pauses: dict[str, Pause] = {}
        self.stopping = False
        self.looked = time.monotonic()

    def start(self, slot: str) -> None:
        """A new worker: as long as it imports its libraries it is silent."""
        self.pauses[slot] = Pause()

    def moved(self, slot: str) -> None:
        """Something has begun, or come further."""
        self.pauses[slot] = Pause(ready=self.pauses[slot].ready)

    def heard(self, slot: str, event: str) -> None:
        """Take note of an event of a worker."""
        pause = self.pauses[slot]
        pause.ready, pause.quiet, pause.told_quiet = True, 0.0, False
        if event != "alive":
            pause.idle, pause.told_idle = 0.0, False

    def stop(self, slots: Iterable[str]) -> None:
        """The workers have been asked to save and stop."""
        self.stopping = True
        for slot in slots:
            self.moved(slot)

    def look(self, workers: Mapping[str, int]) -> list[Finding]:
        """What is to be told of the workers with a job, given by slot and process id."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, 1.0), now
        found = [self._look(slot, pid, passed) for slot, pid in workers.items()]
        return [finding for finding in found if finding]

    def _look(self, slot: str, pid: int, passed: float) -> Finding | None:
        pause = self.pauses[slot]
        pause.quiet += passed
        pause.idle += passed
        silent = f"worker {slot} (PID {pid}) has said nothing for {pause.quiet:.0f} s"
        idle = f"worker {slot} (PID {pid}) is alive, but its job has not come further for {pause.idle:.0f} s"
        if pause.quiet >= (STOP_SECONDS if self.stopping else HUNG_SECONDS) and (pause.ready or self.stopping):
            return Finding(slot, silent, fatal=True)
        if self.stopping and pause.idle >= HUNG_SECONDS:
            return Finding(slot, idle, fatal=True)
        if pause.quiet >= QUIET_SECONDS and not pause.told_quiet:
            pause.told_quiet = True
            return Finding(slot, f"{silent}{_cause(pid, pause.ready)}")
        if pause.idle >= (STEP_SECONDS if self.stopping else HUNG_SECONDS) and not pause.told_idle:
            pause.told_idle = True
            advice = "Ctrl-C again stops at once" if self.stopping else f"if it hangs, 'kill -9 {pid}' starts it again"
            return Finding(slot, f"{idle}: a long step, or a device or file system that hangs; {advice}")
        return None


def _cause(pid: int, ready: bool) -> str:
    """What may be the matter with a silent process, and what will be done."""
    state = process_state(pid)
    if state == "stopped":
        cause = f" and is stopped ('kill -CONT {pid}' lets it go on)"
    else:
        cause = f" and is {state}" if state else ""
    return f"{cause}; after {HUNG_SECONDS / 60:.0f} min it is started again" if ready else f"{cause} since its start"
