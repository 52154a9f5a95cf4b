"""The list of a student's images and labels. A short-lived process draws it, so that torch stays out of this one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from kdbench.catalogue.datasets import dataset
from kdbench.errors import BadInput, KdbenchError
from kdbench.execution.child import exit_reason, interpreter
from kdbench.suite.specs import DatasetSpec, Scenario


def list_samples(spec: DatasetSpec, scenario: Scenario, trial: int, data: Path) -> str:
    """The list as CSV. Raises BadInput where the data set is not in ``data`` or is not what it should be."""
    facts = dataset(spec.name)
    if facts.missing(data):
        raise BadInput(facts.how_to_get(data))
    request = {
        "dataset": spec.canonical(),
        "scenario": scenario.canonical(),
        "trial": trial,
        "data": str(data),
    }
    command = interpreter("from kdbench.data.list_samples import main\nmain()")
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode == BadInput.exit_code:
        raise BadInput(done.stderr.strip())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [exit_reason(done.returncode)])[-1]
        raise KdbenchError(f"the list cannot be drawn: {reason}")
    return done.stdout
