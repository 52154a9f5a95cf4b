"""A worker process: one device slot, one job at a time.

It reads jobs as JSON lines from standard input and writes events as JSON lines to standard output. When its input closes,
because the parent ended however it did, it ends at once; a line {"stop": true} lets it finish the step, save and end.
Signals that a terminal or a batch system sends to all processes are the parent's business.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from kdbench.catalogue.plugins import locating_modules
from kdbench.data.stream import DataSource
from kdbench.errors import KdbenchError, LostTeacher, reason_of
from kdbench.store.store import Store
from kdbench.suite.measurements import measurement_from
from kdbench.suite.specs import RunSpec, stage_from
from kdbench.training.context import JobResult, WorkerContext
from kdbench.training.environment import device_lost, prepare
from kdbench.training.jobs import train_cohort, train_teacher
from kdbench.training.measuring import take_measurement
from kdbench.training.weights import WeightFiles


ALIVE_SECONDS = 2.0


class Channel:
    """Both directions of the talk with the parent process, which hears every few seconds that this one is alive."""

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

    def note(self, text: str) -> None:
        """Send a line for the user."""
        self.emit("message", text=text)

    def close(self) -> None:
        """Let nothing be sent any more: no thread may be writing when the interpreter ends."""
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
    options = _options()
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    channel = Channel(sys.stdin, sink)
    device = prepare(options.device, options.threads)
    ctx = WorkerContext(
        store=Store(options.results),
        data=DataSource(options.data, device, download=options.download),
        weights=WeightFiles(options.data / "weights", _by_name(options.weights), options.download, channel.note),
        device=device,
        emit=channel.emit,
        stopped=channel.stopping.is_set,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    channel.emit("ready")
    with locating_modules(_by_name(options.beside).get):
        while not channel.stopping.is_set():
            job = channel.jobs.get()
            if not job.get("stop"):
                channel.emit("done", **_work(job, ctx))
    channel.close()


def _work(job: dict[str, Any], ctx: WorkerContext) -> dict[str, Any]:
    try:
        outcome = _dispatch(job, ctx)
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


def _dispatch(job: dict[str, Any], ctx: WorkerContext) -> JobResult:
    if "teacher" in job:
        return train_teacher(stage_from(job["teacher"]), ctx, waited=job["waited"])
    if "measurement" in job:
        spec = measurement_from(job["measurement"])
        return take_measurement(spec, ctx, waited=job["waited"], keep_weights=spec.id not in job["spare"])
    runs = [RunSpec.model_validate(spec) for spec in job["runs"]]
    return train_cohort(runs, ctx, waited=job["waited"], spare=job["spare"])


def _by_name(entries: list[str]) -> dict[str, Path]:
    """Files of weights by SHA-256, or folders by the modules in them."""
    return {name: Path(place) for name, _, place in (entry.partition("=") for entry in entries)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train what the parent process asks for.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--weights", action="append", default=[], metavar="SHA256=FILE")
    parser.add_argument("--beside", action="append", default=[], metavar="MODULE=FOLDER")
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0)
    return parser.parse_args()
