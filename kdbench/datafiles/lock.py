"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.listener import Listener
from kdbench.errors import KdbenchError
from kdbench.store.lock import Lock


@contextmanager
def alone(facts: Dataset, root: Path, listener: Listener) -> Iterator[None]:
    """Hold the data set's lock: several processes may want the same files at once."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = Lock(root / f".{facts.name}.lock").wait(f"{facts.name} in {root}", listener.note)
    except OSError as error:
        raise KdbenchError(f"{root}: nothing can be written there: {error.strerror or error}") from None
    with lock:
        yield
