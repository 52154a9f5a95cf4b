"""A trainer's checkpoint, written whole or not at all, and tensors as safetensors files."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors.torch import save
from torch import Tensor

from kdbench.files import quarantine, write_bytes
from kdbench.store.record import Record
from kdbench.training.environment import out_of_memory
from kdbench.training.trainer import Progress, Trainer


FORMAT = 3
"""The version of a checkpoint's content. Version 1 held whole epochs only, version 2 no training error."""

_DIGEST = hashlib.sha256().digest_size
"""A checkpoint file begins with the SHA-256 of what torch.save wrote: torch.load alone does not notice flipped bits."""

SAVE_SHARE = 20
"""Before trainers are saved again, they train at least this many times as long as saving them took."""


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used. It has been quarantined, and the trainer must be built anew."""


@dataclass
class Snapshot:
    """A trainer as it was after a step: all that it needs to go on from there, in memory that nothing else writes to."""

    record: Record
    state: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer, teacher_state: dict[str, Any]) -> Snapshot:
        """The trainer now. On a GPU the copy is made there, without waiting for it."""
        changing = {
            "network": trainer.trainable_state_dict(),
            "terms": trainer.terms.state_dict(),
            "optimiser": trainer.optimiser.state_dict(),
            "sums": trainer.sums,
        }
        progress = vars(trainer.progress) | {"metrics": [*trainer.progress.metrics]}
        state = {
            "format": FORMAT,
            **deepcopy(changing),
            "progress": progress,
            "best_weights": trainer.best_weights,
            "teacher": teacher_state,
            "parent_sha256": trainer.parent_sha256,
        }
        return cls(trainer.record, state)

    def write(self) -> None:
        """Store the checkpoint, and then the metrics so far. Raises OSError and LostLease."""
        self.record.write("state.pt", self._serialise)
        self.record.write_metrics(self.state["progress"]["metrics"])

    def _serialise(self, file: BinaryIO) -> None:
        file.write(bytes(_DIGEST))
        hashed = _Hashed(file)
        torch.save(self.state, hashed)  # type: ignore[arg-type]
        if hashed.error:
            raise hashed.error
        file.seek(0)
        file.write(hashed.sha256.digest())


class _Hashed:
    """A file that is hashed as it is written, so that the state is not in memory once more; few of its steps hold the GIL.

    ``error`` is the first that the file raised: torch.save would raise another in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self.error is None:
                self.file.write(data)
                self.sha256.update(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed when all of it is written."""


class CheckpointWriter:
    """Saves trainers while they train on: it takes snapshots at once, and a thread writes them, those of one save at a time.

    A save begins whenever the last one is ``seconds`` old (0: after each step), but at most a twentieth of the time goes to
    saves: that for which they stop the training, and the processor's time that the thread may take from it. What the thread
    raises is raised by the next call of any method. Leaving the context waits for the thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._thread = futures.ThreadPoolExecutor(1, "checkpoints")
        self._writing: futures.Future[float] | None = None
        self._spent = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._thread:
            self.flush()

    def save(self, trainers: Sequence[Trainer], teacher_state: Callable[[], dict[str, Any]], *, now: bool) -> None:
        """Save all that go on, with their teacher, ``now`` or if it is time."""
        if self._writing and self._writing.done():
            self.flush()
        active = [trainer for trainer in trainers if trainer.active]
        started = time.monotonic()
        wait = self.seconds and max(self.seconds, SAVE_SHARE * self._spent)
        if not active or not (now or started - min(trainer.saved_at for trainer in active) >= wait):
            return
        self.flush()
        teacher = deepcopy(teacher_state())
        self._writing = self._thread.submit(_write, [Snapshot.of(trainer, teacher) for trainer in active])
        ended = time.monotonic()
        self._spent = ended - started
        for trainer in active:
            trainer.saved_at = ended

    def wait(self) -> None:
        """Wait until the thread does nothing. What it raised is raised later."""
        if self._writing:
            futures.wait([self._writing])

    def flush(self) -> None:
        """Wait until what was saved is on disk."""
        if self._writing:
            writing, self._writing = self._writing, None
            self._spent += writing.result()


def _write(snapshots: list[Snapshot]) -> float:
    """Write snapshots, and let go of each at once. Returns the seconds of the processor that this took."""
    started = time.thread_time()
    while snapshots:
        snapshots.pop(0).write()
    return time.thread_time() - started


def load_checkpoint(trainer: Trainer) -> tuple[dict[str, Any], str]:
    """Bring a trainer to its last checkpoint; returns the teacher's state then, and a message for the user.

    Without a checkpoint nothing changes: {} and "". Raises DamagedCheckpoint where the file is not what was stored.
    """
    path = trainer.record.state_file
    if not path.exists():
        return {}, ""
    content = path.read_bytes() if path.is_file() else b""  # reading a pipe would wait for ever
    try:
        if hashlib.sha256(memoryview(content)[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("its hash is wrong")
        state = torch.load(io.BytesIO(content[_DIGEST:]), map_location=trainer.device, weights_only=True)
        if state.get("format") != FORMAT:
            raise ValueError("another version of kdbench stored it")
        if state["parent_sha256"] != trainer.parent_sha256:
            raise ValueError("it was learned on other weights than are there now")
        trainer.load_weights(state["network"])
        trainer.terms.load_state_dict(state["terms"])
        trainer.seek(Progress(**state["progress"]))
        trainer.optimiser.load_state_dict(state["optimiser"])
        trainer.sums, trainer.best_weights = state["sums"], state["best_weights"]
        teacher: dict[str, Any] = state["teacher"]
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"{path}: cannot be used ({reason}); quarantined as {quarantine(path).name}, training restarts"
        raise DamagedCheckpoint(message) from None
    done = trainer.progress
    return teacher, f"resumes after epoch {done.epoch}" + (f" and {done.batches} batches" if done.batches else "")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Store tensors as safetensors; returns the SHA-256 of the file."""
    content = as_safetensors(tensors)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file."""
    return save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
