"""A data set's files from the net, by one process at a time."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.damage import damage
from kdbench.datafiles.download import download
from kdbench.datafiles.listener import Listener, Silent
from kdbench.datafiles.lock import alone
from kdbench.datafiles.unpack import is_archive, unpack
from kdbench.errors import BadInput
from kdbench.store.files import set_aside


def fetch(facts: Dataset, root: Path, listener: Listener | None = None) -> bool:
    """Download and unpack what is missing or damaged. Returns whether there was anything to do.

    Raises BadInput for a data set that cannot be downloaded, KdbenchError where a download fails.
    """
    listener = listener or Silent()
    if _ready(facts, root):
        return False
    if not facts.archives:
        raise BadInput(facts.how_to_get(root))
    with alone(facts, root, listener):
        packed = facts.packed(root)
        if packed.is_file() and (reason := damage(facts, root)):
            listener.note(f"{reason}. It is set aside as {set_aside(packed).name}.")
        if _ready(facts, root):
            return True
        for archive in facts.archives:
            folder = root if is_archive(Path(archive.name)) else root / facts.folder
            path = download(archive, folder, listener)
            if is_archive(path):
                listener.note(f"unpacking {path}")
                unpack(path, facts, root)
    return True


def _ready(facts: Dataset, root: Path) -> bool:
    return not facts.missing(root) and not damage(facts, root)
