"""A worker process: one device slot, one job at a time.

    python -m kdbench.training.worker --device cpu --results results --data data

It reads jobs as JSON lines from standard input and writes events as JSON lines to standard output. When its input closes,
because the parent ended however it did, it ends at once; a line {"stop": true} lets it finish the step, save and end.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from kdbench.data.stream import DataSource
from kdbench.errors import KdbenchError, LostTeacher
from kdbench.store.store import Store
from kdbench.suite.measurements import measurement_from
from kdbench.suite.specs import RunSpec, TeacherSpec
from kdbench.training.environment import device_lost, prepare
from kdbench.training.jobs import train_cohort, train_teacher
from kdbench.training.measuring import take_measurement
from kdbench.training.weights import WeightFiles
from kdbench.training.workshop import Outcome, Workshop


class Channel:
    """Both directions of the talk with the parent process."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self.sink = sink
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopping = threading.Event()
        threading.Thread(target=self._read, args=(source,), daemon=True).start()

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event. Without a parent to hear it, end at once."""
        try:
            self.sink.write(json.dumps({"event": event, **fields}) + "\n")
            self.sink.flush()
        except BrokenPipeError:
            os._exit(0)

    def _read(self, source: TextIO) -> None:
        for line in source:
            message = json.loads(line)
            if message.get("stop"):
                self.stopping.set()
            self.jobs.put(message)
        os._exit(0)


def main() -> None:
    """Work until told to stop or until the parent is gone."""
    options = _options()
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    channel = Channel(sys.stdin, sink)
    device = prepare(options.device, options.threads)
    shop = Workshop(
        store=Store(options.results),
        data=DataSource(options.data, device, download=options.download),
        weights=WeightFiles(options.data / "weights", _given(options.weights), options.download),
        device=device,
        emit=channel.emit,
        stopped=channel.stopping.is_set,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    channel.emit("ready")
    while not channel.stopping.is_set():
        job = channel.jobs.get()
        if not job.get("stop"):
            channel.emit("done", **_work(job, shop))


def _work(job: dict[str, Any], shop: Workshop) -> dict[str, Any]:
    try:
        outcome = _dispatch(job, shop)
    except LostTeacher as error:
        return {"lost_teacher": str(error)}
    except KdbenchError as error:
        return {"error": str(error)}
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or shop.store.root}"
        return {"error": reason, "fatal": error.errno in _STORAGE}
    except Exception as error:
        if device_lost(error):  # a new process gets the device back
            traceback.print_exc()
            print(f"{type(error).__name__}: {error}".partition("\n")[0], file=sys.stderr)
            os._exit(1)
        return {"error": f"{type(error).__name__}: {error}", "detail": traceback.format_exc()}
    return {"busy": outcome.busy}


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the system says where results cannot be written. It would say the same to the next job."""


def _dispatch(job: dict[str, Any], shop: Workshop) -> Outcome:
    if "teacher" in job:
        return train_teacher(TeacherSpec.model_validate(job["teacher"]), shop, waited=job["waited"])
    if "measurement" in job:
        spec = measurement_from(job["measurement"])
        return take_measurement(spec, shop, waited=job["waited"], keep_weights=spec.id not in job["spare"])
    runs = [RunSpec.model_validate(spec) for spec in job["runs"]]
    return train_cohort(runs, shop, waited=job["waited"], spare=job["spare"])


def _given(entries: list[str]) -> dict[str, Path]:
    """Files of weights by SHA-256."""
    return {sha256: Path(file) for sha256, _, file in (entry.partition("=") for entry in entries)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train what the parent process asks for.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--weights", action="append", default=[], metavar="SHA256=FILE")
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
