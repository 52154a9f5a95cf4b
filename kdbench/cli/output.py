"""Where a command's text goes: standard output, or what ``--output`` names."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from kdbench.cli.options import path
from kdbench.cli.streams import say
from kdbench.errors import BadInput


def _unless_standard(path: Path | None) -> Path | None:
    return None if path == Path("-") else path


Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=path,
        metavar="PATH",
        callback=_unless_standard,
        help="Write to this file instead; -: standard output.",
    ),
]


def print_text(text: str, output: Path | None, done: str = "") -> None:
    """Write a text and tell what was ``done``, or to standard output. Raises BadInput where that cannot be.

    A file is written whole or not at all, and keeps its mode; a link keeps pointing to it. Devices and pipes are written to.
    """
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        _write(output, text)
    except OSError as error:
        raise BadInput(f"--output {output}: cannot be written: {error.strerror or error}") from None
    say(done or f"written to {output}")


def _write(output: Path, text: str) -> None:
    from kdbench.store.files import write_atomically

    there = _status(output)
    if there and _is_standard_output(there):  # under whatever name, such as /dev/stdout: what it holds already stays
        typer.echo(text, nl=False)
        return
    if there and not stat.S_ISREG(there.st_mode):
        with output.open("wb") as file:
            file.write(text.encode(errors="replace"))
        return
    if there and not os.access(output, os.W_OK):
        raise PermissionError(0, "Permission denied")

    def write(file: BinaryIO) -> None:
        if there:
            os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
        file.write(text.encode(errors="replace"))

    write_atomically(Path(os.path.realpath(output)), write)


def _status(path: Path) -> os.stat_result | None:
    """What a path leads to; None for nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_standard_output(there: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(there, os.fstat(1))
    return False
