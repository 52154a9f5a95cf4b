"""A trainer's resume state, written whole or not at all, and its final record.

The state file is the SHA-256 of what follows, and what torch.save made: torch.load alone takes flipped bits as they come.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from kdbench.files import quarantine, write_atomically
from kdbench.store.record import NO_WEIGHTS, Kind, Result, timestamp
from kdbench.training.environment import out_of_memory
from kdbench.training.trainer import Progress, Trainer


FORMAT = 2
"""Raised with what a resume state holds: 1 was of whole epochs."""


def save_checkpoint(trainer: Trainer, teacher_state: dict[str, Any]) -> None:
    """Store everything that the trainer needs to go on after its last step, and its metrics so far."""
    started = time.monotonic()
    state = {
        "format": FORMAT,
        "network": trainer.trainable_state_dict(),
        "terms": trainer.terms.state_dict(),
        "optimiser": trainer.optimiser.state_dict(),
        "progress": asdict(trainer.progress),
        "sums": trainer.sums,
        "best_weights": trainer.best_weights,
        "teacher": teacher_state,
        "parent_sha256": trainer.parent_sha256,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    write_atomically(trainer.record.state_file, lambda file: _write(file, hashlib.sha256(content).digest(), content))
    trainer.record.write_metrics(trainer.progress.metrics)
    trainer.saved_at = time.monotonic()
    trainer.save_seconds = trainer.saved_at - started


def load_checkpoint(trainer: Trainer) -> tuple[dict[str, Any], str]:
    """Bring a trainer to its last checkpoint; returns the teacher's state then, and a message for the user.

    Raises DamagedCheckpoint where the file is not what was stored; it is quarantined, and the trainer must be built anew.
    """
    path = trainer.record.state_file
    if not path.exists():
        return {}, ""
    content = path.read_bytes() if path.is_file() else b""  # a pipe would let one wait for ever
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


_DIGEST = hashlib.sha256().digest_size


class DamagedCheckpoint(Exception):
    """A resume state that could not be read; it has been quarantined and the trainer must be built anew."""


def finish(
    trainer: Trainer, kind: Kind, facts: dict[str, Any], about: dict[str, Any], *, keep_weights: bool = True
) -> None:
    """Write weights, metrics and, last of all, the result, with ``facts`` of how it was measured.

    The result holds the hash of the weights also where they are not kept.
    """
    record = trainer.record
    content = as_safetensors((trainer.best_weights if trainer.keep_best else trainer.trainable_state_dict()) or {})
    if keep_weights:
        write_atomically(record.weights_file, lambda file: _write(file, content))
    metrics = record.write_metrics(trainer.progress.metrics)
    result = Result(
        id=record.id,
        kind=kind,
        last=trainer.last(),
        best=trainer.best(),
        **{**trainer.likeness(), **facts},
        weights_sha256=hashlib.sha256(content).hexdigest(),
        metrics_sha256=metrics,
    )
    times = {
        "finished": timestamp(),
        "seconds": round(trainer.progress.seconds, 3),
        "sessions": trainer.progress.sessions,
    }
    record.finish(result, {**times, **about, **({} if keep_weights else NO_WEIGHTS)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Store tensors as safetensors; returns the SHA-256 of the file."""
    content = as_safetensors(tensors)
    write_atomically(path, lambda file: _write(file, content))
    return hashlib.sha256(content).hexdigest()


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file."""
    return save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})


def _write(file: BinaryIO, *parts: bytes | memoryview) -> None:
    for part in parts:
        file.write(part)
