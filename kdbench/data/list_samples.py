"""A short-lived process that draws a student's images and labels and prints them as CSV.

The request holds ``dataset``, ``scenario`` and ``trial`` as in a run's spec, and the folder ``data``. Why something cannot
be listed is said on standard error, with the exit code of the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from kdbench.data.stream import DataSource
from kdbench.errors import KdbenchError
from kdbench.suite.specs import DatasetSpec, Scenario


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    spec, scenario = DatasetSpec(**request["dataset"]), Scenario(**request["scenario"])
    source = DataSource(Path(request["data"]), torch.device("cpu"))
    try:
        samples = source.samples(spec, scenario, request["trial"])
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.stdout.writelines(f"{line}\n" for line in samples.csv(spec, scenario, request["trial"]))
