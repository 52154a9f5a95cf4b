"""Files of weights, looked at before anything is trained. A short-lived process does it: torch stays out of this one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.execution.child import exit_reason, interpreter
from kdbench.suite.specs import TeacherSpec


def misfits(teachers: Iterable[TeacherSpec], files: Mapping[str, Path]) -> list[str]:
    """One message for each teacher whose first stage cannot be made of its file; ``files``: by SHA-256."""
    asked = {
        stage.id: {
            "file": str(files[stage.weights.sha256].resolve()),
            "network": stage.network,
            "classes": stage.dataset.class_count if stage.dataset else 1,
            "classifier": stage.weights.classifier,
            "key": stage.weights.key,
        }
        for teacher in teachers
        for stage in teacher.stages
        if stage.stage_recipe is None and stage.weights and stage.weights.sha256 and stage.weights.sha256 in files
    }
    if not asked:
        return []
    command = interpreter("from kdbench.models.fit import main\nmain()")
    done = subprocess.run(command, input=json.dumps([*asked.values()]), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [exit_reason(done.returncode)])[-1]
        raise KdbenchError(f"the files of weights cannot be looked at: {reason}")
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return [message for message in dict.fromkeys(found) if message]
