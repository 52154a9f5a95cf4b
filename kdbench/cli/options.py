"""Options that commands share, and their output."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from kdbench.catalogue.text import printable, shorten
from kdbench.child import answer
from kdbench.cli.completion import complete_only, complete_suites
from kdbench.errors import BadInput, KdbenchError
from kdbench.suite.selection import select
from kdbench.suite.yaml_reader import STDIN


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from kdbench.store.record import Record
    from kdbench.store.store import Store
    from kdbench.suite.suite import Suite


def path(text: str) -> Path:
    """A path as it was typed, where `~` is the home folder, also after `=` and in environment variables."""
    if not str(text):
        raise typer.BadParameter("is empty: give a path")
    return Path(os.path.expanduser(text))


def results_folder(text: str) -> Path:
    """The path of a folder that is there, or of one that can be made."""
    folder = path(text)
    try:
        usable = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        usable = not folder.is_symlink()
    except OSError as error:
        raise BadInput(f"{shorten(str(folder), 200)}: cannot be a folder of results: {error.strerror}") from None
    if not usable:
        raise BadInput(f"{folder}: is no folder of results. Name a folder, or a path where one can be made")
    return folder


HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def group(summary: str) -> typer.Typer:
    """A command with commands of its own."""
    return typer.Typer(help=summary, no_args_is_help=True, add_completion=False, context_settings=HELP_OPTIONS)


def _shard(text: str | None) -> str | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (
        re.fullmatch(r"[1-9]\d{0,4}", number) and re.fullmatch(r"[1-9]\d{0,4}", count) and int(number) <= int(count)
    ):
        raise typer.BadParameter(f"{shorten(text)!r}: write I/N with I from 1 to N, such as 1/4")
    return text


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
        "--results", envvar="KDBENCH_RESULTS", parser=results_folder, metavar="PATH", help="Folder of the results."
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
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Only part I of N, for machines that share nothing; kdbench results merge joins their results.",
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
    shard: str | None = None,
) -> list[Suite]:
    """Load the selected part of suites; empty, with a message, where a shard has none of their runs.

    Suites, weights and modules that are gone are those kept with the results.
    """
    from kdbench.store.store import Store
    from kdbench.store.suites import ArchivedFiles, find_kept
    from kdbench.suite.load import bundled_suites, load_suites

    stores = [Store(folder) for folder in results]
    known = ArchivedFiles(stores)
    bundled = bundled_suites()
    gone = (
        name for name in references if name not in (*bundled, STDIN) and not os.path.exists(os.path.expanduser(name))
    )
    kept = {name: str(file) for name in gone if (file := find_kept(stores, name))}
    named = [kept.get(name, name) for name in references]
    loaded = load_suites(named, trials, tiny=tiny, known=known.tell, settings=settings or ())
    tell_outdated(stores)
    for message in known.messages:
        say(message)
    selected = select(loaded, only)
    if shard:
        from kdbench.planning import shards

        selected = shards.shard(selected, *map(int, shard.split("/")))
        if not selected:
            say(f"--shard {shard}: holds no run, for there are fewer runs than parts: there is nothing to do")
    return selected


def tell_outdated(stores: Iterable[Store]) -> None:
    """Warn about results of an earlier version of kdbench."""
    for store in stores:
        if message := store.outdated():
            say(message)


def find_record(results: Path, kind: str, id: str) -> Record:
    """The record whose id begins so. Raises BadInput where there is none, or several."""
    from kdbench.store.store import Store

    record = Store(results).find(kind, id)
    if record is None:
        raise BadInput(f"no {kind[:-1]}'s id in {results} begins with '{id}' (four digits or more)")
    return record


def plots_module(module: str) -> Any:
    """A module of kdbench.plots. Raises BadInput where matplotlib is not installed."""
    try:
        return import_module(f"kdbench.plots.{module}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BadInput("pictures need matplotlib, which cannot be imported: pip install 'kdbench[plots]'") from None


def networks_of(data: Path) -> Callable[[dict[str, Any]], Any]:
    """What ``kdbench.deployment.views`` answers of finished networks, on the data sets below a folder."""
    code = "from kdbench.deployment.views import print_views\nprint_views()"

    def ask(request: dict[str, Any]) -> Any:
        doing = f"{request['view']} of {len(request['networks'])} networks on the CPU"
        return answer_of(code, {**request, "data": str(data)}, "the networks cannot be shown", doing)

    return ask


def answer_of(code: str, request: Any, failure: str, doing: str) -> Any:
    """What ``child.answer`` answers, as JSON. A terminal shows meanwhile what is done, and for how long."""
    with _waiting(doing):
        return json.loads(answer(code, request, failure))


@contextmanager
def _waiting(doing: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(printable(doing), total=None)
        yield


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


def _output(text: str) -> Path | None:
    return None if text == "-" else path(text)


Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=_output,
        metavar="PATH",
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

    try:
        there = output.stat()
    except FileNotFoundError:
        there = None
    if there and os.path.samestat(
        there, os.fstat(1)
    ):  # standard output under another name: what it holds already stays
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
