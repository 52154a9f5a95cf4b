"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.listener import Listener
from kdbench.errors import KdbenchError
from kdbench.store.lock import Lock


@contextmanager
def alone(facts: Dataset, root: Path, listener: Listener) -> Iterator[None]:
    """Hold the data set's lock: several processes may want the same files at once."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = Lock(root / f".{facts.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            listener.note(f"another process is at {facts.name} in {root}: waiting for it ({lock.holder()})")
            lock.acquire()
    except OSError as error:
        raise KdbenchError(f"{root}: nothing can be written there: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()
