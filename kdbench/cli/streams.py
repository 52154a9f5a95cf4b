"""Standard error that may be gone: a terminal or a pipe that was closed, a full disk behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kdbench.catalogue.printable import printable


@contextmanager
def heard_or_not() -> Iterator[None]:
    """Go on where what is said cannot be written; from then on nothing is."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def say(text: object) -> None:
    """Print a message on standard error."""
    with heard_or_not():
        print(printable(str(text)), file=sys.stderr, flush=True)
