"""What is wrong with a data set's files."""

from __future__ import annotations

from pathlib import Path

from kdbench.catalogue.datasets import Dataset
from kdbench.datafiles.checksum import unofficial
from kdbench.errors import BadInput


def damage(facts: Dataset, root: Path) -> str:
    """What is wrong with files that are there: their sums, or counts where they have none. Nothing is written."""
    from kdbench.datafiles.folders import list_folders
    from kdbench.datafiles.packed import read_packed
    from kdbench.datafiles.tinyimagenet import listed

    try:
        if facts.streamed:
            list_folders(facts, root)
        elif facts.packed(root).is_file():
            read_packed(facts, root)
        elif facts.name == "tinyimagenet":
            listed(facts, root)
        elif wrong := unofficial(facts, root):
            return f"not the official file: {', '.join(wrong)}"
    except BadInput as error:
        return str(error)
    return ""
