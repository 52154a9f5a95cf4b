"""A trainer's checkpoint, written whole or not at all, and tensors as safetensors files."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from kdbench.files import quarantine, write_bytes
from kdbench.training.environment import out_of_memory
from kdbench.training.trainer import Progress, Trainer


FORMAT = 3
"""The version of a checkpoint's content. Version 1 held whole epochs only, version 2 no training error."""

_DIGEST = hashlib.sha256().digest_size
"""A checkpoint file begins with the SHA-256 of what torch.save wrote: torch.load alone does not notice flipped bits."""


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used. It has been quarantined, and the trainer must be built anew."""


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
    digest = hashlib.sha256(content).digest()
    trainer.record.write("state.pt", lambda file: file.writelines((digest, content)))
    trainer.record.write_metrics(trainer.progress.metrics)
    trainer.saved_at = time.monotonic()
    trainer.save_seconds = trainer.saved_at - started


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
