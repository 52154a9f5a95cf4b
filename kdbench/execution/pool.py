"""The pool: starts workers on slots, gives them what the scheduler says, and tells it what becomes of that.

Other `kdbench run` processes may work on the same results directory. A job whose records are all taken by them comes back
"busy" and is tried again a little later, when they are done or gone.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from typing import Any

from kdbench.child import exit_reason
from kdbench.errors import KdbenchError
from kdbench.execution.devices import Slot
from kdbench.execution.scheduler import Assignment, Outcome, Scheduler, StoredRecords
from kdbench.execution.worker_handle import Inbox, RunOptions, Watchdog, Worker, WorkerHandle
from kdbench.planning.plan import Plan
from kdbench.planning.speed import choose, known_speeds
from kdbench.store.store import Store


class Pool:
    """Runs a plan on slots. ``listen`` is called with (slot name, event) for each event of the workers.

    ``start`` starts a worker on a slot; ``holding``: it is the worker that holds the slot's resources, so a slot that is lent
    to a job needs one, too. Slots may come and go: ``joined`` and ``left`` in the inbox say so, ``held`` that somebody else
    has the resources of one, and ``placed`` that they are there.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        options: RunOptions,
        listen: Callable[[str, dict[str, Any]], None],
        start: Callable[[Slot, RunOptions, Inbox], Worker] = WorkerHandle,
        *,
        holding: bool = False,
    ) -> None:
        self.options = options
        self.listen = listen
        self.start = start
        self.holding = holding
        self.inbox: Inbox = queue.Queue()
        self.workers: dict[str, Worker] = {}
        self.ending: dict[str, dict[str, Any]] = {}
        self.watchdog = Watchdog()
        store = Store(options.results)
        speed = choose(known_speeds(store), slots[0].kind)
        several = 1 if options.devices_per_run is None else options.devices_per_run
        self.scheduler = Scheduler(slots, StoredRecords(store), listen, speed=speed, devices_per_run=several)
        self.outcome = self.scheduler.outcome
        self.told_to_stop = False
        self.killed = False

    def stop(self) -> None:
        """Let every worker finish its step and save; no new job is started. May be called from a signal handler."""
        self.outcome.interrupted = True

    def kill(self) -> None:
        """End every worker at once. May be called from a signal handler."""
        self.outcome.interrupted = self.killed = True

    def run(self, plan: Plan) -> Outcome:
        """Work until all jobs are done or failed, or until stopped. Raises KdbenchError where no worker can start."""
        self.scheduler.add(plan)
        try:
            while self.scheduler and not self.killed:
                if self.outcome.stopping:
                    self._stop_workers()
                else:
                    for assignment in self.scheduler.assign():
                        self._send(assignment)
                with contextlib.suppress(queue.Empty):
                    self._handle(*self.inbox.get(timeout=0.2))
                self._check_workers()
        finally:
            for worker in self.workers.values():
                worker.close()
        return self.outcome

    def _stop_workers(self) -> None:
        if not self.told_to_stop:
            self.told_to_stop = True
            if self.outcome.interrupted:
                self._say("Saving and stopping; Ctrl-C again stops at once.")
            for worker in self.workers.values():
                worker.send({"stop": True})
            self.watchdog.stop(self.scheduler.running)

    def _send(self, assignment: Assignment) -> None:
        """Give a job to the worker of its slot. Those of its other slots make room, or hold them for it."""
        slot = assignment.slot
        beside = [self._worker(other) for other in assignment.others] if self.holding else []
        for other in () if self.holding else assignment.others:
            if idle := self.workers.pop(other.name, None):
                idle.close()
        worker = self._worker(slot)
        self.watchdog.restart(slot.name)
        worker.send(assignment.message(), assignment.job, beside)

    def _worker(self, slot: Slot) -> Worker:
        """The worker of a slot, which is started where there is none."""
        if slot.name not in self.workers:
            try:
                self.workers[slot.name] = self.start(slot, self.options, self.inbox)
            except OSError as error:
                reason = f"{error.strerror or error}: {error.filename or self.options.results}"
                raise KdbenchError(f"no worker process can be started: {reason}") from None
            self.watchdog.add(slot.name)
        return self.workers[slot.name]

    def _check_workers(self) -> None:
        """Warn of workers that hang, and kill those that are silent for too long."""
        if not self.inbox.empty():
            return
        while self.ending:
            self._handle(*self.ending.popitem())
        for alarm in self.watchdog.check({slot: self.workers[slot].pid for slot in self.scheduler.running}):
            if alarm.fatal:
                ended = self.workers.pop(alarm.slot).close()
                still = "" if ended else ", but the system does not let it end"
                self.scheduler.lose(alarm.slot, f"{alarm.text} and was killed{still}")
                self.listen(alarm.slot, {"event": "exit"})
            else:
                self._say(alarm.text)

    def _handle(self, slot: str, event: dict[str, Any]) -> None:
        if event["event"] in ("exit", "left"):
            self._end_leader(slot, event)
        match event["event"]:
            case "joined":
                self.scheduler.add_slot(event["slot"])
                self._say(f"{slot} has joined")
                return
            case "held" if slot in self.scheduler.slots:
                leader = self.scheduler.lent.get(slot, slot)
                if leader != slot:
                    self.workers.pop(leader).close()
                    self.ending.pop(leader, None)
                self.scheduler.hold(slot, event["reason"])
                self.listen(leader, {"event": "exit"})
                return
            case "left":
                if worker := self.workers.pop(slot, None):
                    worker.close()
                if slot in self.scheduler.slots:
                    self.scheduler.remove_slot(slot, event["reason"])
                    self.listen(slot, {"event": "exit"})
                return
        self.watchdog.receive(slot, event["event"])
        match event["event"]:
            case "alive":
                return
            case "unusable" if worker := self.workers.pop(slot, None):
                worker.close()
                self.scheduler.remove_slot(slot, event["reason"])
            case "exit" if worker := self.workers.pop(slot, None):
                words = "" if "reason" in event else worker.stderr_tail()
                worker.close()
                reason = f"the worker process ended ({exit_reason(event['code'])})" + (f": {words}" if words else "")
                reason = event.get("reason", reason)
                self.scheduler.lose(slot, reason, asked=self.outcome.stopping and event["code"] == 0)
            case _:
                self.scheduler.handle(slot, event)
        self.listen(slot, event)

    def _end_leader(self, slot: str, event: dict[str, Any]) -> None:
        """Where a slot is lost whose worker held it for a job, end the one that leads this.

        Its end is handled like that of the slot, once, and after all that it has said before.
        """
        self.ending.pop(slot, None)
        leader = self.scheduler.lent.get(slot)
        if leader and slot in self.workers and leader not in self.ending:
            self.workers[leader].close()
            self.ending[leader] = event

    def _say(self, text: str) -> None:
        self.listen("", {"event": "message", "text": text})
