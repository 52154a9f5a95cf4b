"""A worker process: one device slot, one job at a time.

It reads its options and then jobs from standard input and writes events to standard output, all as JSON lines: first that it
is ready, once its device has run a small convolution forward and backward, or why the device cannot be used. When its input
closes, because the parent ended however it did, it ends at once; {"stop": true} lets it finish the step, save and end.
Signals that a terminal or a batch system sends to all processes are handled by the parent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from kdbench.catalogue.plugins import ModuleLocator, locating_modules
from kdbench.data.stream import DataSource
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import KdbenchError, LostLease, LostTeacher, reason_of
from kdbench.store.store import Store
from kdbench.suite.measurements import measurement_from
from kdbench.suite.specs import RunSpec, stage_from
from kdbench.training.context import JobContext, JobResult
from kdbench.training.environment import device_lost, prepare
from kdbench.training.gpus import trouble_of
from kdbench.training.jobs import train_along, train_cohort, train_teacher
from kdbench.training.measuring import take_measurement
from kdbench.training.replicas import exit_code, meet
from kdbench.training.weights import WeightFiles


ALIVE_SECONDS = 2.0


class Channel:
    """The channel to and from the parent process, which is told every few seconds that this process is alive."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self.sink = sink
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopping = threading.Event()
        self.closed = threading.Event()
        self.writing = threading.Lock()
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        self.pulse = threading.Thread(target=self._beat, daemon=True)
        self.pulse.start()

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event. Without a parent to hear it, end at once."""
        line = json.dumps({"event": event, **fields}) + "\n"
        try:
            with self.writing:
                self.sink.write(line)
                self.sink.flush()
        except BrokenPipeError:
            os._exit(0)

    def close(self) -> None:
        """Stop sending: no thread may be writing when the interpreter ends."""
        self.closed.set()
        self.pulse.join()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, and so is this process in a moment
            while not self.closed.wait(ALIVE_SECONDS):
                self.emit("alive")

    def _read(self, source: TextIO) -> None:
        for line in source:
            message = json.loads(line)
            if message.get("stop"):
                self.stopping.set()
            self.jobs.put(message)
        os._exit(0)


def main() -> None:
    """Work until told to stop or until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.stdin.readline())
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    channel = Channel(sys.stdin, sink)
    device = prepare(options["device"], options["threads"], deterministic=options["deterministic"])
    if trouble := trouble_of(device):
        channel.emit("unusable", reason=trouble)
        channel.close()
        return
    ctx = _context(options, device, channel.emit, channel.stopping.is_set)
    channel.emit("ready")
    with locating_modules(_beside(options)):
        while not channel.stopping.is_set():
            job = channel.jobs.get()
            if not job.get("stop"):
                channel.emit("done", **_work(job, ctx))
    channel.close()


def assist() -> None:
    """Train one job in the company of a worker, on another device. Options and job come from there; nothing is stored.

    It ends when the worker does, however that ends. What it gives up for goes to standard output.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.stdin.readline())
    sink = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    device = prepare(options["device"], options["threads"], deterministic=options["deterministic"])
    ctx = _context(options, device, lambda event, **fields: None, lambda: False)
    try:
        ranks = meet(options["meeting"], options["rank"], options["size"], device)
        with locating_modules(_beside(options)):
            train_along(options["job"], replace(ctx, ranks=ranks))
        ranks.leave()
    except Exception as error:
        traceback.print_exc()
        os.write(sink, reason_of(error).encode())
        os._exit(exit_code(error))


def _beside(options: dict[str, Any]) -> ModuleLocator:
    return {module: Path(folder) for module, folder in options["beside"].items()}.get


def _context(
    options: dict[str, Any], device: torch.device, emit: Callable[..., None], should_stop: Callable[[], bool]
) -> JobContext:
    """What all jobs of a process work with."""
    data = Path(options["data"])
    weights = {sha256: Path(file) for sha256, file in options["weights"].items()}
    sources = {sha256: ImageSource(**source) for sha256, source in options["images"].items()}
    return JobContext(
        store=Store(Path(options["results"])),
        data=DataSource(data, device, download=options["download"], sources=sources),
        weights=WeightFiles(data / "weights", weights, options["download"], lambda text: emit("message", text=text)),
        device=device,
        emit=emit,
        should_stop=should_stop,
        checkpoint_seconds=options["checkpoint_seconds"],
        eager=options["eager"],
        options=options,
    )


def _work(job: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    try:
        outcome = _dispatch(job, ctx)
    except LostLease as error:
        return {"lost_lease": str(error)}
    except LostTeacher as error:
        return {"lost_teacher": str(error)}
    except KdbenchError as error:
        return {"error": str(error)}
    except OSError as error:
        here = error.filename is None or Path(str(error.filename)).is_relative_to(ctx.store.root)
        fatal = error.errno in _STORAGE and here
        place = error.filename or (ctx.store.root if fatal else "")
        reason = f"{error.strerror or error}" + (f": {place}" if place else "")
        return {"error": reason, "fatal": fatal, "detail": traceback.format_exc()}
    except Exception as error:
        if device_lost(error):  # a new process gets the device back
            traceback.print_exc()
            print(f"{type(error).__name__}: {error}".partition("\n")[0], file=sys.stderr)
            os._exit(1)
        return {"error": reason_of(error), "detail": traceback.format_exc()}
    return {"busy": outcome.busy}


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the system says where results cannot be written. It would say the same to the next job."""


def _dispatch(job: dict[str, Any], ctx: JobContext) -> JobResult:
    if ctx.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ctx.device)
    ctx = replace(ctx, waited=job["waited"], discard_weights=frozenset(job["discard_weights"]))
    ctx = replace(ctx, replicas=job.get("replicas", ()))
    if "teacher" in job:
        return train_teacher(stage_from(job["teacher"]), ctx)
    if "measurement" in job:
        return take_measurement(measurement_from(job["measurement"]), ctx)
    ctx = replace(ctx, cached=job["cached"])
    return train_cohort([RunSpec.model_validate(spec) for spec in job["runs"]], ctx)
