"""The local pool: gives jobs to workers, teachers before the cohorts that need them, until nothing is left.

Other `kdbench run` processes may work on the same results directory. A job whose records are all taken by them comes back
"busy" and is tried again a little later, when they are done or gone.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdbench.execution.devices import Slot
from kdbench.execution.worker_handle import WorkerHandle, WorkerOptions
from kdbench.plan.plan import Plan
from kdbench.store.record import Failure
from kdbench.store.store import Store
from kdbench.suite.specs import RunSpec, TeacherSpec


RETRY_SECONDS = 1.0
MAX_CRASHES = 3


@dataclass
class Job:
    """A teacher to train, or a cohort."""

    teacher: TeacherSpec | None = None
    runs: tuple[RunSpec, ...] = ()
    needs: tuple[str, ...] = ()
    not_before: float = 0.0
    crashes: int = 0

    def message(self) -> dict[str, Any]:
        """What a worker is sent."""
        if self.teacher:
            return {"teacher": self.teacher.model_dump(mode="json")}
        return {"runs": [run.model_dump(mode="json") for run in self.runs]}


@dataclass
class PoolResult:
    """Ids of what failed, with the reason; whether the pool was asked to stop."""

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


class Pool:
    """Runs a plan on slots. ``listen`` is called with (slot name, event) for each event of the workers."""

    def __init__(
        self,
        slots: Sequence[Slot],
        options: WorkerOptions,
        listen: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.slots = slots
        self.options = options
        self.listen = listen
        self.store = Store(options.results)
        self.inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.workers: dict[str, WorkerHandle] = {}
        self.running: dict[str, Job] = {}
        self.pending: list[Job] = []
        self.unfit: dict[str, str] = {}
        self.result = PoolResult()

    def stop(self) -> None:
        """Let every worker finish its epoch and save; no new job is started."""
        self.result.interrupted = True
        for worker in list(self.workers.values()):
            worker.send({"stop": True})

    def kill(self) -> None:
        """End every worker at once."""
        self.result.interrupted = True
        for worker in list(self.workers.values()):
            worker.kill()

    def run(self, plan: Plan) -> PoolResult:
        """Work until all jobs are done or failed, or until stopped."""
        self.pending = _jobs(plan)
        try:
            while self.running or (self.pending and not self.result.interrupted):
                if not self.result.interrupted:
                    self._start_jobs()
                try:
                    slot, event = self.inbox.get(timeout=0.2)
                except queue.Empty:
                    continue
                self._handle(slot, event)
        finally:
            for worker in self.workers.values():
                worker.kill()
                worker.discard_empty_log()
        return self.result

    def _start_jobs(self) -> None:
        for slot in self.slots:
            if slot.name in self.running:
                continue
            job = self._next_job()
            if job is None:
                return
            self.pending.remove(job)
            self.running[slot.name] = job
            if slot.name not in self.workers:
                self.workers[slot.name] = WorkerHandle(slot, self.options, self.inbox)
            self.listen(slot.name, {"event": "started", "teacher": job.teacher, "runs": job.runs})
            self.workers[slot.name].send(job.message())

    def _next_job(self) -> Job | None:
        self._drop_hopeless()
        ready = [j for j in self.pending if j.not_before <= time.monotonic() and all(map(self._teacher_done, j.needs))]
        return ready[0] if ready else None

    def _teacher_done(self, id: str) -> bool:
        return self.store.teacher(id).done()

    def _drop_hopeless(self) -> None:
        """Give up the jobs whose teacher could not be trained."""
        for job in [job for job in self.pending if any(need in self.result.failed for need in job.needs)]:
            need = next(need for need in job.needs if need in self.result.failed)
            self.pending.remove(job)
            for id in _ids(job):
                self.result.failed[id] = f"its teacher failed: {self.result.failed[need]}"

    def _handle(self, slot: str, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            self._done(slot, self.running.pop(slot), event)
        elif event["event"] == "failed":
            self.result.failed[event["id"]] = event["reason"]
        elif event["event"] == "exit":
            self._exited(slot, event["code"])
        self.listen(slot, event)

    def _done(self, slot: str, job: Job, event: dict[str, Any]) -> None:
        if "error" in event:
            self._failed(job, event["error"], event.get("detail", ""))
        elif "lost_teacher" in event:
            self._replace_teacher(job, event["lost_teacher"])
        elif event["busy"]:
            runs = tuple(run for run in job.runs if run.id in event["busy"])
            again = time.monotonic() + RETRY_SECONDS
            self.pending.append(replace(job, runs=runs, not_before=again))

    def _replace_teacher(self, job: Job, message: str) -> None:
        """A cohort found its teacher damaged: train the teacher again, then the cohort."""
        self.listen("", {"event": "message", "text": message})
        teacher = next(run.teacher for run in job.runs if run.teacher)
        self.pending[:0] = [*_teacher_jobs([teacher.backbone, teacher] if teacher.head else [teacher]), job]

    def _exited(self, slot: str, code: int) -> None:
        worker = self.workers.pop(slot)
        job = self.running.pop(slot, None)
        words = worker.last_words()
        worker.discard_empty_log()
        if job is None or self.result.interrupted:
            return
        job.crashes += 1
        reason = f"the worker process ended ({_exit_reason(code)})" + (f": {words}" if words else "")
        if job.crashes < MAX_CRASHES:
            self.listen(slot, {"event": "message", "text": f"{reason}; starting it again from the last checkpoint"})
            self.pending.insert(0, job)
        else:
            self._failed(job, reason, "")

    def _failed(self, job: Job, reason: str, detail: str) -> None:
        for id in _ids(job):
            record = self.store.teacher(id) if job.teacher else self.store.run(id)
            if record.done() or id in self.result.failed:
                continue
            self.result.failed[id] = reason
            self.listen("", {"event": "failed", "id": id, "reason": reason})
            with contextlib.suppress(OSError):
                record.fail(Failure(kind="error", epoch=0, reason=reason, detail=detail))


def _jobs(plan: Plan) -> list[Job]:
    cohorts = [Job(runs=cohort.runs, needs=(cohort.teacher.id,) if cohort.teacher else ()) for cohort in plan.cohorts]
    return [*_teacher_jobs(plan.teachers), *cohorts]


def _teacher_jobs(teachers: Iterable[TeacherSpec]) -> list[Job]:
    return [Job(teacher=teacher, needs=(teacher.backbone.id,) if teacher.head else ()) for teacher in teachers]


def _ids(job: Job) -> list[str]:
    return [job.teacher.id] if job.teacher else [run.id for run in job.runs]


def _exit_reason(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
