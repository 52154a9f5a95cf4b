"""Options that commands share, and their output."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import network
from kdbench.catalogue.text import listed, nearest, normalise, printable, shorten
from kdbench.cli.completion import ONLY_KEYS, complete_only, complete_suites
from kdbench.errors import BadInput, KdbenchError


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from kdbench.store.store import Store
    from kdbench.suite.suite import Run, Suite


def path(text: str) -> Path:
    """A path as it was typed, where `~` is the home folder, also after `=` and in environment variables."""
    if not str(text):
        raise typer.BadParameter("is empty: give a path")
    return Path(os.path.expanduser(text))


def results_folder(text: str) -> Path:
    """The path of a folder that is there, or of one that can be made."""
    found = path(text)
    try:
        os.stat(found)
    except FileNotFoundError:
        usable = not found.is_symlink()
    except OSError as error:
        raise BadInput(f"{shorten(str(found), 200)}: cannot be a folder of results: {error.strerror}") from None
    else:
        usable = found.is_dir()
    if not usable:
        raise BadInput(f"{found}: is no folder of results. Name a folder, or a path where one can be made")
    return found


HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

Suites = Annotated[
    list[str],
    typer.Argument(
        metavar="SUITE…",
        autocompletion=complete_suites,
        help="Suite files, `-` for standard input, or names of bundled suites.",
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        "--results",
        envvar="KDBENCH_RESULTS",
        parser=results_folder,
        metavar="PATH",
        help="Folder of the results.",
        show_default=True,
    ),
]
Data = Annotated[
    Path,
    typer.Option("--data", envvar="KDBENCH_DATA", parser=path, metavar="PATH", help="Folder of the data sets."),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trials of each run, instead of the suite's number.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="KEY=VALUE",
        autocompletion=complete_only,
        help="Only runs with this method, student, teacher, dataset, strategy or trial; several values with commas.",
    ),
]
Tiny = Annotated[
    bool,
    typer.Option(
        "--tiny",
        help="Try the whole grid in minutes: one trial and epoch, a few digits as images, random weights for published "
        "ones. Nothing is downloaded; the numbers mean nothing.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the protocols of the suites, such as protocol.epochs=5; the value is read as YAML. May be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def load(
    references: Sequence[str],
    results: Sequence[Path],
    trials: int | None = None,
    only: Sequence[str] | None = None,
    *,
    tiny: bool = False,
    settings: Sequence[str] | None = None,
) -> list[Suite]:
    """Load the selected part of suites. Weights and modules that are gone are taken from what was kept with the results."""
    from kdbench.store.store import Store
    from kdbench.store.suites import ArchivedFiles
    from kdbench.suite.load import load_suites

    stores = [Store(folder) for folder in results]
    known = ArchivedFiles(stores)
    loaded = load_suites(references, trials, tiny=tiny, known=known.tell, settings=settings or ())
    tell_outdated(stores)
    for message in known.messages:
        say(message)
    return select(loaded, only)


def tell_outdated(stores: Iterable[Store]) -> None:
    """Warn about results of an earlier version of kdbench."""
    for store in stores:
        if message := store.outdated():
            say(message)


def select(suites: Sequence[Suite], only: Sequence[str] | None) -> list[Suite]:
    """Keep the runs that match every ``KEY=VALUE[,VALUE…]``. Raises BadInput for what matches nothing.

    A name may hold commas itself: of several ways to read a condition, the one with the longest names counts.
    """
    chosen = list(suites)
    for condition in only or ():
        typed, _, values = condition.partition("=")
        key = typed.strip().lower()
        if key not in ONLY_KEYS or not values.strip(" ,"):
            near = nearest(key, ONLY_KEYS)
            hint = f" Did you mean '{near}'?" if near and near != key else ""
            raise BadInput(
                f"--only {shorten(condition, 200)}: write KEY=VALUE with a KEY of {', '.join(ONLY_KEYS)}.{hint}"
            )
        there = sorted({_value(run, key) for suite in suites for run in suite.runs} - {""})
        try:
            wanted = set().union(*_named(values, key, there))
        except KeyError as error:
            raise BadInput(
                f"--only {shorten(condition, 200)}: no run has the {key} {_unknown(error.args[0], there)}"
            ) from None
        chosen = [
            replace(
                suite,
                runs=tuple(run for run in suite.runs if _value(run, key) in wanted),
                measurements=tuple(m for m in suite.measurements if _value(m.run, key) in wanted),
                whole=suite.whole or suite,
            )
            for suite in chosen
        ]
    if only and not any(suite.runs for suite in chosen):
        raise BadInput(f"--only {' --only '.join(only)}: no run matches all of these")
    return [suite for suite in chosen if suite.runs]


def _named(values: str, key: str, there: Sequence[str]) -> Iterator[set[str]]:
    """The values that are meant, of those ``there``. Raises KeyError for another."""
    spelt: dict[str, set[str]] = {}
    for name in there:
        spelt.setdefault(_spelling(key, name), set()).add(name)
    parts, most = values.split(","), 1 + max((name.count(",") for name in there), default=0)
    while parts:
        for count in range(min(most, len(parts)), 0, -1):
            name = ",".join(parts[:count]).strip()
            if name and (found := {name}.intersection(there) or spelt.get(_spelling(key, name))):
                yield found
                break
        else:
            whole = re.match(r"[^,\[]*(\[[^\]]*\])?[^,]*", ",".join(parts).strip())
            if whole and (name := whole[0].strip()):
                raise KeyError(name)
            count = 1
        del parts[:count]


def _unknown(value: str, there: Sequence[str]) -> str:
    near = nearest(value, there)
    return f"'{shorten(value)}'. " + (f"Did you mean '{near}'?" if near else f"There are {listed(there)}.")


def _spelling(key: str, value: str) -> str:
    """One spelling for all the names of a thing."""
    try:
        if key in ("student", "teacher"):
            return network(value).name
        if key == "dataset":
            return dataset(value).name
    except BadInput:
        pass
    return normalise(value)


def _value(run: Run, key: str) -> str:
    values = {
        "method": run.method,
        "student": run.spec.student,
        "teacher": run.teacher,
        "dataset": run.spec.dataset.name,
        "strategy": run.strategy,
        "trial": str(run.spec.trial),
    }
    return values[key]


class _Output(io.FileIO):
    """Standard output whose write errors name it. After an error, further output is discarded."""

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

    A closed one is reopened on the null device, so that no later file gets its number and its output.
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
    """Ignore that standard error cannot be written; discard all further messages."""
    try:
        yield
    except OSError:
        _silence(sys.stderr.fileno())


def say(text: object) -> None:
    """Print a message on standard error."""
    with heard_or_not():
        print(printable(str(text)), file=sys.stderr, flush=True)


def _silence(number: int) -> None:
    """Discard what is written to a stream."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


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
    """Write a text and tell what was ``done``, or to standard output. Raises BadInput if it cannot be written.

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
    from kdbench.files import write_atomically

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
    """The status of a path; None if it does not exist."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_standard_output(there: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(there, os.fstat(1))
    return False
