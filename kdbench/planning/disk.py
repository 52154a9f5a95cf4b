"""How much disk space a plan needs."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

from kdbench.catalogue.terms import costs
from kdbench.catalogue.text import file_size
from kdbench.files import free_space
from kdbench.planning.plan import Plan
from kdbench.suite.networks import info
from kdbench.suite.specs import Imported, NewLayers, RunSpec, Stage


_WEIGHT = 4
"""Bytes of a parameter in weights.safetensors: float32."""

_STATE = 8
"""Bytes of a trained parameter in state.pt: float32, and the optimiser's momentum."""

_BEST = 4
"""Bytes more where the weights of the best epoch are kept, too."""

_EPOCH, _RECORD = 250, 16_384
"""About the bytes of an epoch's line in metrics.jsonl, and of a record's other files, each of which fills a block."""


@dataclass(frozen=True)
class Disk:
    """Bytes on disk. ``checkpoints``: at the time when those of the largest jobs lie there together."""

    weights: int
    checkpoints: int
    logs: int
    outputs: int = 0

    def __str__(self) -> str:
        weights, checkpoints, logs = map(file_size, (self.weights, self.checkpoints, self.logs))
        outputs = f"{file_size(self.outputs)} of teachers' outputs, " if self.outputs else ""
        return f"{weights} of weights, {outputs}{logs} of logs, up to {checkpoints} of checkpoints"

    def warning(self, folder: Path) -> str:
        """A line for the user where the file system of a folder may not have enough free space; "" where it has."""
        needed, free = self.weights + self.outputs + self.checkpoints + self.logs, free_space(folder)
        if needed <= free:
            return ""
        return (
            f"{folder}: {file_size(free)} are free, and as much as {file_size(needed)} may be needed: {self}. "
            "Work that finds no space stops, and can be resumed"
        )


def disk_needed(plan: Plan, slots: int) -> Disk:
    """What a plan adds to a results folder while it runs on so many slots."""
    runs = [run for cohort in plan.cohorts for run in cohort.runs]
    kept = [info(run.student).parameters for run in runs if not run.dataset.stand_in]
    kept += [_stored(stage) for stage in plan.teachers]
    states = [sum(map(_state, cohort.runs)) for cohort in plan.cohorts] + [
        _stage_state(stage) for stage in plan.teachers
    ]
    epochs = sum(run.recipe.epochs for run in runs)
    epochs += sum(stage.recipe.epochs for stage in plan.teachers if stage.recipe)
    records = len(runs) + len(plan.teachers) + len(plan.measurements)
    checkpoints, logs = round(sum(heapq.nlargest(slots, states))), _EPOCH * epochs + _RECORD * records
    return Disk(_WEIGHT * sum(kept), checkpoints, logs, round(sum(each.missing * each.bytes for each in plan.cached)))


def _state(run: RunSpec) -> float:
    terms = sum(known.parameters for use in run.terms if (known := costs().of(use.name)))
    best = _BEST * info(run.student).parameters if run.checkpoint == "best" else 0
    return _STATE * (info(run.student).parameters + terms) + best


def _stored(stage: Stage) -> int:
    """The parameters that a teacher's stage stores: of new layers alone where the rest is frozen."""
    if isinstance(stage, NewLayers):
        classes = stage.dataset.class_count
        return (info(stage.network).embedding + 1) * stage.head.width + (stage.head.width + 1) * classes
    return info(stage.network).parameters


def _stage_state(stage: Stage) -> float:
    return 0.0 if isinstance(stage, Imported) else float((_STATE + _BEST) * _stored(stage))
