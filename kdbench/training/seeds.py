"""The seeds of runs and teachers' stages: hashes of a fixed form of their specs.

The form does not follow the names of fields, so renaming one changes ids and leaves every result as it was.
"""

from __future__ import annotations

from typing import Any

from kdbench.suite.specs import Adapter, FineTuned, NewLayers, RunSpec, Stage, StudentOf, digest


def seed_key(spec: RunSpec | Stage) -> str:
    """Twelve hexadecimal digits that the randomness of a run, or of a teacher's stage, depends on."""
    return digest(_of_run(spec) if isinstance(spec, RunSpec) else _of_stage(spec))


def _of_run(run: RunSpec) -> dict[str, Any]:
    form = _fields(run, "teacher_view", "adapters")
    form |= {"teacher": _of_stage(run.teacher)} if run.teacher else {}
    form |= {"view": run.teacher_view.canonical()} if run.teacher_view else {}
    return form | ({"parts": [_of_stage(adapter) for adapter in run.adapters]} if run.adapters else {})


def _of_stage(stage: Stage) -> dict[str, Any]:
    """The fields of a stage on top of those of its parents."""
    match stage:
        case StudentOf():
            return {"network": stage.network, "dataset": stage.dataset.canonical(), "student": _of_run(stage.run)}
        case FineTuned() | NewLayers():
            return _of_stage(stage.parent) | _fields(stage, "parent")
        case Adapter():
            below = _of_stage(stage.parent) | {"dataset": stage.dataset.canonical()}
            return below | {"part": _fields(stage, "parent", "dataset")}
    return _fields(stage)


def _fields(spec: RunSpec | Stage, *left_out: str) -> dict[str, Any]:
    form = spec.canonical()
    return {name: value for name, value in form.items() if name not in ("kind", *left_out)}
