"""The second of two processes that train together: it gets jobs as JSON lines, and its place among them as the first."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from kdbench.data.preprocess import Normalisation
from kdbench.data.stream import DataSource
from kdbench.store.store import Store
from kdbench.training import ranks
from kdbench.training.context import JobContext
from kdbench.training.environment import LostRank
from kdbench.training.jobs import train_along
from kdbench.training.replicas import meet
from kdbench.training.weights import WeightFiles


def in_default_dtype(patch):
    """Train in torch's default dtype. In double precision rounding stays far below what is asserted."""
    patch(Normalisation, "__call__", lambda self, images: normalise(self, images).to(torch.get_default_dtype()))


normalise = Normalisation.__call__


def context(root):
    device = torch.device("cpu")
    return JobContext(
        Store(root),
        DataSource(root, device),
        WeightFiles(root / "weights", {}),
        device,
        lambda event, **fields: None,
        lambda: False,
        1e9,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_default_dtype(setattr)
    sys.path.insert(0, str(Path(__file__).parent))
    first = json.loads(sys.stdin.readline())
    ranks.TIMEOUT = ranks.timedelta(seconds=first["seconds"])
    together = meet(first["meeting"], 1, 2, torch.device("cpu"))
    for line in sys.stdin:
        message = json.loads(line)
        torch.set_default_dtype(torch.float64 if message["double"] else torch.float32)
        with suppress(LostRank):  # the first has noticed, too
            train_along(message["job"], replace(context(Path(message["root"])), ranks=together))
