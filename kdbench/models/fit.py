"""Check in a separate process that files of weights fit the networks of teachers."""

from __future__ import annotations

import json
import sys
from typing import Any

from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint


def main() -> None:
    """Read a JSON list of {file, network, classes, classifier, key}; write one of messages, "" where all is well."""
    print(json.dumps([_problem(asked) for asked in json.load(sys.stdin)]))


def _problem(asked: dict[str, Any]) -> str:
    """Why a file cannot fill the network, or ""."""
    network = build(asked["network"], asked["classes"])
    try:
        load_checkpoint(network, asked["file"], classifier=asked["classifier"], key=asked["key"])
    except BadInput as error:
        return str(error)
    return ""
