"""Standard output and standard error that may be gone: a terminal or a pipe that was closed, a full disk behind it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdbench.catalogue.printable import printable
from kdbench.errors import KdbenchError


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    """Standard output, of which an error of writing says that it is that. What comes after the error goes nowhere."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _silence(self.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise KdbenchError(f"standard output cannot be written: {error.strerror or error}") from None


def open_streams() -> None:
    """Prepare the standard streams. Letters that their encoding lacks become ``?``.

    The number of a closed one is taken, lest a file that is opened later gets it, and what is meant for the stream.
    """
    for number, wrong_way in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, wrong_way)  # the lowest number that is free; using it is an error
    given = sys.stdout
    if given is sys.__stdout__:
        buffer = io.BufferedWriter(_Output(1, "w", closefd=False))
        encoding, live = (given.encoding, given.isatty()) if given else (None, False)
        sys.stdout = io.TextIOWrapper(buffer, encoding, line_buffering=live)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (it stays open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def heard_or_not() -> Iterator[None]:
    """Go on where what is said cannot be written; from then on nothing is."""
    try:
        yield
    except OSError:
        _silence(sys.stderr.fileno())


def say(text: object) -> None:
    """Print a message on standard error."""
    with heard_or_not():
        print(printable(str(text)), file=sys.stderr, flush=True)


def _silence(number: int) -> None:
    """Let what is written to a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
