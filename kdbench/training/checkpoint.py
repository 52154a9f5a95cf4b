"""A learner's resume state, written whole or not at all, and its final record."""

from __future__ import annotations

import io
import pickle
import time
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save

from kdbench.store.files import set_aside, write_atomically
from kdbench.store.record import Record, Result, file_hash, timestamp
from kdbench.training.learner import Learner, Progress


def save_checkpoint(learner: Learner, guide_state: dict[str, Any]) -> None:
    """Store everything that the learner needs to go on after its last epoch, and its metrics so far."""
    state = {
        "network": learner.network.state_dict(),
        "terms": learner.terms.state_dict(),
        "optimiser": learner.optimiser.state_dict(),
        "progress": asdict(learner.progress),
        "best_weights": learner.best_weights,
        "guide": guide_state,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(learner.record.state_file, lambda file: _write(file, buffer.getbuffer()))
    learner.record.write_metrics(learner.progress.metrics)
    learner.saved_at = time.monotonic()


def load_checkpoint(learner: Learner) -> tuple[dict[str, Any], str]:
    """Bring a learner to its last checkpoint; returns the teacher's state then, and a message for the user.

    A state file that cannot be read is set aside, and the learner starts anew.
    """
    path = learner.record.state_file
    if not path.exists():
        return {}, ""
    try:
        state = torch.load(path, map_location=learner.device, weights_only=True)
        learner.network.load_state_dict(state["network"])
        learner.terms.load_state_dict(state["terms"])
        learner.optimiser.load_state_dict(state["optimiser"])
        learner.progress = Progress(**state["progress"])
        learner.best_weights = state["best_weights"]
        guide: dict[str, Any] = state["guide"]
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        aside = set_aside(path)
        raise DamagedCheckpoint(f"{path}: cannot be read ({type(error).__name__}); set aside as {aside.name}") from None
    return guide, f"goes on after epoch {learner.progress.epoch}"


class DamagedCheckpoint(Exception):
    """A resume state that could not be read; it has been set aside and the learner must be built anew."""


def finish(learner: Learner, kind: str, train_images: int, test_images: int, about: dict[str, Any]) -> Result:
    """Write weights, metrics and, last of all, the result."""
    record = learner.record
    write_weights(record, learner.best_weights if learner.keep_best else learner.network.state_dict())
    record.write_metrics(learner.progress.metrics)
    result = Result(
        id=record.id,
        kind="teacher" if kind == "teacher" else "run",
        last=learner.last(),
        best=learner.best(),
        train_images=train_images,
        test_images=test_images,
        weights_sha256=file_hash(record.weights_file),
    )
    times = {
        "finished": timestamp(),
        "seconds": round(learner.progress.seconds, 3),
        "sessions": learner.progress.sessions,
    }
    record.finish(result, {**times, **about})
    return result


def write_weights(record: Record, weights: dict[str, Any] | None) -> None:
    """Store a network's weights as safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in (weights or {}).items()}
    content = save(tensors)
    write_atomically(record.weights_file, lambda file: _write(file, content))


def _write(file: Any, content: Any) -> None:
    file.write(content)
