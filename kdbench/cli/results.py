"""`kdbench results`: merge, pack, verify and prune."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from kdbench.catalogue.text import one_line
from kdbench.cli.checks import ids_of, print_verification
from kdbench.cli.completion import complete_suites
from kdbench.cli.options import Json, Only, group, load, path, results_folder, say
from kdbench.errors import BadInput, BadSuite, KdbenchError
from kdbench.store.archives import damaged_suites
from kdbench.store.liveness import file_system_time
from kdbench.store.lock import Lock
from kdbench.store.merge import MERGING, LeftOut, Merged
from kdbench.store.merge import merge as merge_into
from kdbench.store.packs import UNPACKED, check_pack, opened
from kdbench.store.packs import pack as write_pack
from kdbench.store.prune import Choice, Item, What, prunable, remove
from kdbench.store.store import KINDS, Store
from kdbench.store.suites import ArchivedFiles, kept_suites
from kdbench.store.verify import verify as compare
from kdbench.suite.components import hashed
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.suite import Suite, measurement_specs, run_specs


app = group("Move and tidy results: merge, pack, verify, prune.")

Folder = Annotated[Path, typer.Argument(metavar="RESULTS", parser=results_folder, help="A results folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
Chosen = Annotated[
    list[str] | None, typer.Argument(metavar="[SUITE…]", autocompletion=complete_suites, help="Only these suites'.")
]


SHOWN = 20
"""So many things of a kind are printed one by one."""


@app.command()
def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE…", parser=path, help="Results folders, or packs of results.")
    ],
    into: Annotated[
        Path, typer.Option("--into", parser=results_folder, metavar="RESULTS", help="The folder that gets them.")
    ],
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """Take over finished runs, teachers and measurements of other folders or packs, with their suites and code.

    Each record is checked, and lands whole. Nothing that is finished here is replaced: where numbers differ, both are told
    and the one here stays. A merge that was stopped is repeated. Exit code 1 if a record was left out.
    """
    for source in sources:
        if source.is_file():
            check_pack(source)
        else:
            _check_results(source)
            if into.resolve().is_relative_to(source.resolve()):
                raise BadInput(f"--into {into}: is {source}, which is merged, or lies in it. Name another folder")
    target = Store(into)
    with ExitStack() as stack:
        if not dry_run:
            try:
                notes = target.check_writable()
            except BadInput as error:
                raise BadInput(str(error).replace("--results", "--into")) from None
            for note in notes:
                say(note)
            stack.enter_context(Lock(into / "locks" / MERGING).wait(f"a merge into {into}", say))
            for leftover in into.glob(f"{UNPACKED}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        within = into if not dry_run else Path(tempfile.gettempdir())
        stores = [stack.enter_context(opened(source, within)) for source in sources]
        merged = merge_into(dict(zip(map(str, sources), stores, strict=True)), target, dry_run=dry_run)
    if json_output:
        typer.echo(json.dumps(asdict(merged), indent=1))
    else:
        _print_merged(merged, into, dry_run=dry_run)
    if merged.differing or merged.left_out:
        raise typer.Exit(1)


def _check_results(folder: Path) -> None:
    """Raise BadInput unless a folder is one of results."""
    if not folder.exists():
        raise BadInput(f"{folder}: no such results folder or pack")
    if not any((folder / kind).is_dir() for kind in KINDS):
        raise BadInput(f"{folder}: holds no results: no folder runs, teachers or measurements")


def _print_merged(merged: Merged, into: Path, *, dry_run: bool) -> None:
    def line(word: str, each: LeftOut, after: str = "") -> str:
        return one_line(f"{word} {each.kind} {each.id} of {each.source}, {each.label}: {each.reason}{after}", 2000)

    for lines in (
        [line("DIFFERS ", each, ": the one here is kept") for each in merged.differing],
        [line("LEFT OUT", each) for each in merged.left_out],
        [one_line(f"note {note}", 2000) for note in merged.notes],
    ):
        for text in _shortened(lines, "--json lists all"):
            typer.echo(text)
    taken = [_count(count, kind) for kind, count in merged.taken.items() if count]
    parts = [
        f"{'would take' if dry_run else 'took'} {', '.join(taken) or 'nothing'}",
        f"{merged.same} already here" if merged.same else "",
        f"{len(merged.differing)} with other numbers" if merged.differing else "",
        f"{len(merged.left_out)} left out" if merged.left_out else "",
        f"{merged.unfinished} unfinished, which stay where they are" if merged.unfinished else "",
    ]
    typer.echo(f"{into}: {'; '.join(filter(None, parts))}.")


def _shortened(lines: Sequence[str], hint: str) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"… and {len(lines) - SHOWN:,} more ({hint})"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def _count(number: int, kind: str) -> str:
    return f"{number:,} {kind if number != 1 else kind[:-1]}"


@app.command()
def pack(
    results: Folder,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="FILE", help="The pack: NAME.tar.gz or NAME.tar.")
    ],
    suites: Chosen = None,
    only: Only = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Leave out the weights of students that nothing else is made on.")
    ] = False,
) -> None:
    """Write finished records, with their suites and code, into one file for another machine.

    `kdbench results merge` and `verify` read it. Equal results give an equal file. Exit code 1 if a damaged record or suite
    was left out.
    """
    _check_results(results)
    if not output.name.endswith((".tar", ".tar.gz")):
        raise BadInput(f"--output {output}: name a file that ends in .tar.gz or .tar")
    if only and not suites:
        raise BadInput("--only: name the suites of which a part is packed")
    store = Store(results)
    loaded = load(suites, [results], only=only) if suites else []
    weightless = prunable(store, Choice([What.weights])) if no_weights else []
    try:
        packed = write_pack(
            store,
            output,
            ids_of(loaded) if suites else None,
            suites={hashed((suite.whole or suite).text) for suite in loaded} if suites else None,
            without_weights={item.record.id for item in weightless if item.record},
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and Path(error.filename).is_relative_to(results):
            raise KdbenchError(f"{error.filename}: was removed while it was packed. Pack once more") from None
        raise BadInput(f"--output {output}: cannot be written: {error.strerror or error}") from None
    lines = [one_line(f"LEFT OUT {each}", 2000) for each in packed.left_out]
    for line in _shortened(lines, "kdbench results verify lists all"):
        say(line)
    counts = ", ".join(_count(packed.records[kind], kind) for kind in KINDS if packed.records[kind])
    typer.echo(f"{output}: {counts or 'no records'}, {_mebibytes(packed.bytes)}.")
    if packed.left_out:
        raise typer.Exit(1)


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(metavar="RESULTS|PACK", parser=path, help="A results folder, or a pack.")],
    json_output: Json = False,
) -> None:
    """Compare the files of finished records with their checksums, also in a pack. Exit code 1 if one is damaged."""
    if not results.is_file():
        _check_results(results)
    with opened(results) as store:
        checked = compare(store)
        if store.root != results:
            checked.notes = [note.replace(str(store.root), str(results)) for note in checked.notes]
            checked.damaged = [
                replace(
                    each, problem=each.problem.replace(str(store.root), str(results)), next_step="Pack it once more."
                )
                for each in checked.damaged
            ]
        print_verification(checked, json_output)


@app.command()
def prune(
    results: Folder,
    suites: Chosen = None,
    what: Annotated[
        str,
        typer.Option(
            "--what",
            metavar="KIND,…",
            help="tmp: half-written files; logs: of workers that have ended; damaged: quarantined records; checkpoints: of "
            "unfinished work, which then starts again; outputs: teachers' cached ones, which are made again where they are "
            "read; weights: of students that nothing is made on; unused: records that no kept or bundled suite has.",
        ),
    ] = "tmp,logs,damaged",
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="SUITE", help="Touch nothing that this suite uses; may be repeated."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only what is older, such as 30d, 12h or 2w.")
    ] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Free space: say what nothing needs any more, with sizes, and remove it when confirmed.

    What another process is at stays, and so do teachers and students on which something else is made.
    """
    _check_results(results)
    store, choice = Store(results), Choice(_kinds(what))
    if older_than:
        choice = replace(choice, until=file_system_time(results) - _seconds(older_than))
    if suites:
        choice = replace(choice, only=_all_ids(load(suites, [results], _trials(store))))
    if keep:
        choice = replace(choice, keep=_all_ids(load(keep, [results], _trials(store))))
    if {What.weights, What.unused} & set(choice.what):
        known = _known_suites(store)
        choice = replace(choice, used=_all_ids(known), needed=_needed(known, store))
    items = prunable(store, choice)
    _print_items(items)
    if dry_run or not items:
        return
    if not yes and not sys.stdin.isatty():
        raise BadInput("nothing was removed: confirm with --yes, or look with --dry-run")
    if not yes and not typer.confirm(f"Remove {_total(items)} for good?"):
        typer.echo("Nothing was removed.")
        return
    removed = list(remove(items))
    busy = len(items) - len(removed)
    typer.echo(f"{_total(removed)} are free." + (f" {busy} came into use meanwhile, and stayed." if busy else ""))


def _kinds(text: str) -> list[What]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in list(What)]:
        raise BadInput(f"--what {unknown[0]}: is none of {', '.join(What)}")
    return [What(name) for name in names]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if not found:
        raise BadInput(f"--older-than {text}: write a number of hours, days or weeks, such as 12h, 30d or 2w")
    return int(found[1]) * {"h": 3600.0, "d": 86400.0, "w": 604800.0}[found[2]]


def _all_ids(suites: Sequence[Suite]) -> set[str]:
    return {id for ids in ids_of(suites).values() for id in ids}


def _known_suites(store: Store) -> list[Suite]:
    """The bundled suites and those kept with the results, with all the trials of which there are runs.

    Raises BadInput where one of these cannot be read: what it uses is not known then.
    """
    if problems := damaged_suites(store):
        raise BadInput(f"{problems[0]}. {_NOT_KNOWN}")
    trials, known = _trials(store), ArchivedFiles([store])
    files = dict.fromkeys([*bundled_suites().values(), *(each.original for each in kept_suites([store]))])
    try:
        return [load_suite(file, trials, known.tell) for file in files]
    except BadSuite as error:
        raise BadInput(f"{error.problems[0]}. {_NOT_KNOWN}") from None


_NOT_KNOWN = "Run the suite again, or remove its folder: until then, leave out weights and unused"


def _trials(store: Store) -> int:
    """The most trials of which there are runs: suites may have been run with more than they say."""
    found = [record.spec().get("trial") for record in store.records("runs")]
    return 1 + max((trial for trial in found if isinstance(trial, int) and trial < _MOST_TRIALS), default=0)


_MOST_TRIALS = 1000
"""More are no trials of a suite, but a damaged spec."""


def _needed(suites: Sequence[Suite], store: Store) -> set[str]:
    """The runs on whose students something is still to be trained or measured."""
    runs = [spec for spec in run_specs(suites) if not store.run(spec.id).done()]
    measured = [spec for spec in measurement_specs(suites) if store.measured(spec) is None]
    return {run.id for spec in (*runs, *measured) for need in spec.dependencies if (run := need.source_run)}


def _print_items(items: Sequence[Item]) -> None:
    for what in What:
        found = [item for item in items if item.what is what]
        for item in found[:SHOWN]:
            typer.echo(f"{what:<12}{_mebibytes(item.bytes):>12}  {one_line(f'{item.paths[0]} ({item.label})')}")
        if len(found) > SHOWN:
            typer.echo(f"{what:<12}{_total(found[SHOWN:]):>12}  {len(found) - SHOWN:,} more")
    typer.echo(f"{len(items):,} things, {_total(items)}." if items else "There is nothing to remove.")


def _total(items: Iterable[Item]) -> str:
    return _mebibytes(sum(item.bytes for item in items))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
