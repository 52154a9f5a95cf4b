"""`kdbench report` and `kdbench compare`."""

from __future__ import annotations

import gc
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.catalogue.tables import table_name
from kdbench.catalogue.text import command, shell_line
from kdbench.cli.completion import complete_methods, complete_suites, complete_tables
from kdbench.cli.options import (
    Data,
    Only,
    Output,
    Set,
    Tiny,
    Trials,
    networks_of,
    plots_module,
    print_text,
    results_folder,
    say,
    tell_outdated,
)
from kdbench.cli.options import load as load_named
from kdbench.errors import BadInput, BadSuite
from kdbench.planning.plan import changed_plugins
from kdbench.reporting.options import TOLERANCE, Bold, Format, ReportOptions, View
from kdbench.reporting.writers import write_report, write_tables
from kdbench.store.store import Store
from kdbench.store.suites import ArchivedFiles, kept_suites
from kdbench.suite.load import bundled_suites, load_suite, load_suites
from kdbench.suite.selection import select
from kdbench.suite.suite import Suite, run_specs


if TYPE_CHECKING:
    from kdbench.reporting.report import Report


def _in_utf8(format: Format) -> Format:
    """Let files and programs get UTF-8, whatever the encoding of the terminal is."""
    if format is not Format.terminal and isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    return format


FormatOption = Annotated[
    Format, typer.Option("--format", "-f", callback=_in_utf8, help="How tables are written; to files in UTF-8.")
]
ReportedSuites = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SUITE…]", autocompletion=complete_suites, help="Default: every suite with results."),
]
ViewOption = Annotated[View, typer.Option("--view", help="What the cells show.")]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--results",
        envvar="KDBENCH_RESULTS",
        parser=results_folder,
        metavar="PATH",
        help="Results folder; may be repeated.",
    ),
]
MixVersions = Annotated[
    bool, typer.Option("--mix-versions", help="Show numbers of incompatible versions of kdbench in one table.")
]


def report(
    suites: ReportedSuites = None,
    results: Folders = None,
    format: FormatOption = Format.terminal,
    view: ViewOption = View.both,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", autocompletion=complete_tables, help="Only this published table; may be repeated."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="The papers' tables with the published numbers.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0.0,
            max=100.0,
            help="Tolerance in points where no standard deviation is published.",
        ),
    ] = TOLERANCE,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Paired tests, ranks and what the trials can detect.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            autocompletion=complete_methods,
            help="The method that statistics compare with. Default: kd, or else ce.",
        ),
    ] = None,
    bold: Annotated[
        Bold,
        typer.Option(
            "--bold", help="Bold in grid tables: the best method, or all not significantly different from it."
        ),
    ] = Bold.best,
    standalone: Annotated[bool, typer.Option("--standalone", help="LaTeX: a whole document.")] = False,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures",
            help="HTML: with the pictures of kdbench plot that the results are enough for.",
        ),
    ] = False,
    views: Annotated[
        bool,
        typer.Option(
            "--views",
            help="HTML: with --pictures, and what the networks of each pair show of the test images, on which they run.",
        ),
    ] = False,
    data: Data = Path("data"),
    mix_versions: MixVersions = False,
    output: Output = None,
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
) -> None:
    """Print the suites' tables with the results so far; published tables keep the paper's layout."""
    from kdbench.reporting.report import published_report

    gc.disable()  # a report makes no reference cycles: collecting would take a tenth of the time for 10,000 records
    if standalone and format is not Format.latex:
        raise BadInput(f"--standalone is for --format latex, not {format}")
    if (pictures or views) and (format is not Format.html or published):
        option = "--views" if views else "--pictures"
        raise BadInput(f"{option} is for --format html, and pictures are of results: leave one of the options out")
    if (statistics or baseline) and format is Format.csv:
        raise BadInput("--statistics has no CSV: its numbers are in --format json")
    names = list(dict.fromkeys(map(table_name, table or ())))
    loaded: list[Suite] = []
    if published:
        if any((suites, results, trials, only, settings, statistics, baseline, tiny)):
            raise BadInput(
                "--published prints the papers' numbers alone: leave out suites, --results, --trials, --only, --set, --tiny "
                "and --statistics, or take --view published for the tables of a suite"
            )
        if view not in (View.both, View.published) or bold is not Bold.best or mix_versions or tolerance != TOLERANCE:
            raise BadInput(
                "--published prints the papers' numbers alone: leave out --view, --bold, --tolerance and --mix-versions"
            )
        view, content = View.published, published_report(names)
    else:
        _refuse_ignored(format, view, bold, tolerance)
        if tiny and view not in (View.both, View.measured):
            raise BadInput(f"--view {view}: the numbers of --tiny are compared with none. Leave one of the two out")
        loaded, stores = load(suites, results, trials, only, tiny=tiny, settings=settings)
        content = build_report(loaded, stores, names, mix_versions=mix_versions)
    options = ReportOptions(view, tolerance, bold, statistics, baseline, standalone=standalone)
    if format is Format.html:
        changed = ["--published"] * published + _repeated("--table", names)
        changed += ["--view", view] if view is not View.both and not published else []
        changed += ["--bold", bold] if bold is not Bold.best else []
        changed += ["--tolerance", f"{tolerance:g}"] if tolerance != TOLERANCE else []
        changed += ["--views"] * views + ["--pictures"] * (pictures and not views) + ["--mix-versions"] * mix_versions
        changed += ["--baseline", baseline] if baseline else []
        named = suites or _references(loaded)
        elsewhere = data if views and data != Path("data") else None
        changed += _repeated("--data", [elsewhere] if elsewhere else [])
        commands = command_lines(
            named, results or (), trials, only, settings, tiny=tiny, options=changed, data=elsewhere
        )
        ask = networks_of(data) if views else None
        drawn = plots_module("gallery").gallery(content, ask, say) if pictures or views else ()
        options = replace(options, commands=commands, pictures=drawn)
    print_text(write_report(content, format, for_terminal(options, output)), output)


def build_report(
    suites: Sequence[Suite], stores: Sequence[Store], tables: Sequence[str] = (), *, mix_versions: bool = False
) -> Report:
    """The report of suites, with warnings of what contradicts itself."""
    from kdbench.reporting.comparison import changed_teachers, conflicts
    from kdbench.reporting.report import measured_report

    report = measured_report(suites, stores, tables, mix_versions=mix_versions)
    for message in (*conflicts(suites, stores), *changed_teachers(report.runs)):
        say(message)
    return report


def load(
    suites: list[str] | None,
    results: list[Path] | None,
    trials: int | None,
    only: list[str] | None,
    *,
    tiny: bool = False,
    settings: Sequence[str] | None = None,
) -> tuple[list[Suite], list[Store]]:
    """The suites that are named, or all that have results, and the results folders."""
    folders = results or [Path("results")]
    for folder in folders:
        if not folder.is_dir() and (results or folder.exists()):  # before the first run there is no folder yet
            raise BadInput(f"{folder}: no such results folder")
    stores = [Store(folder) for folder in folders]
    if suites:
        loaded = load_named(suites, folders, trials, only, tiny=tiny, settings=settings)
    elif settings:
        raise BadInput(f"--set {settings[0]}: name the suites whose protocols are changed")
    else:
        tell_outdated(stores)
        loaded = select(_with_results(stores, trials, tiny), only)
    tell_changed(loaded, stores)
    return loaded, stores


def tell_changed(suites: Sequence[Suite], stores: Sequence[Store]) -> None:
    """Warn about results that do not count because the code of a plug-in has changed."""
    for store in stores:
        for line in changed_plugins(run_specs(suites), store):
            say(f"{store.root}: {line}" if len(stores) > 1 else line)


def for_terminal(options: ReportOptions, output: Path | None) -> ReportOptions:
    """The options with the width and colour of the terminal, if there is one."""
    if output or not sys.stdout.isatty():
        return options
    return replace(options, width=shutil.get_terminal_size((120, 40)).columns, colour=True)


def _refuse_ignored(format: Format, view: View, bold: Bold, tolerance: float) -> None:
    """Refuse options that would change nothing."""
    data, measured = format in (Format.csv, Format.json), view in (View.measured, View.both)
    if data and view is not View.both and not (view is View.published and format is Format.csv):
        held = "both numbers of each cell, difference and verdict" if format is Format.json else "measured values"
        raise BadInput(f"--view {view}: --format {format} holds {held}: leave out --view")
    if bold is Bold.separable and (data or not (measured or format is Format.html)):
        raise BadInput(f"--bold {bold}: nothing is bold in --format {format} with --view {view}: leave out --bold")
    if tolerance != TOLERANCE and view is not View.verdict and format is not Format.json:
        raise BadInput(
            f"--tolerance {tolerance:g}: only --view verdict and --format json judge: name one, or leave it out"
        )


def _with_results(stores: Sequence[Store], trials: int | None, tiny: bool) -> list[Suite]:
    """The suites of which something has been run: bundled ones, and those that were kept with the results."""
    there = {entry.name for store in stores for entry in (store.root / "runs").glob("*")}
    known = [*load_suites(list(bundled_suites()), trials, tiny=tiny), *_kept(stores, trials, tiny)]
    suites = [suite for suite in known if there & set(suite.specs)]
    if not suites:
        places = ", ".join(str(store.root) for store in stores)
        first = command("run", "demo", results=stores[0].root)
        raise BadInput(
            f"{places}: holds no run of a bundled suite, nor one that was kept there. Name a suite, or run one first: {first}"
        )
    return suites


def _kept(stores: Sequence[Store], trials: int | None, tiny: bool) -> Iterator[Suite]:
    """The archived suites as they were when they were run, without those that are bundled just so.

    Unreadable ones are left out with a message.
    """
    known, bundled = ArchivedFiles(stores), bundled_suites()
    names, texts = set(bundled), {file.read_bytes() for file in bundled.values()}
    for kept in kept_suites(stores):
        if kept.text in texts:
            continue
        try:
            suite = load_suite(kept.original, trials, known.tell, tiny=tiny)
        except BadSuite as error:
            say(f"{kept.file} is left out: {error.problems[0]}")
            continue
        if suite.name in names:  # tables of different suites stay apart
            suite = suite.renamed(f"{suite.name} ({kept.folder.name})")
        names.add(suite.name)
        yield suite
    for message in known.messages:
        say(message)


def _references(suites: Sequence[Suite]) -> list[str]:
    """References that load the suites again: names of bundled ones, else files."""
    bundled = {str(path) for path in bundled_suites().values()}
    return [suite.name if suite.file in bundled else suite.file for suite in suites]


def command_lines(
    suites: Sequence[str],
    results: Sequence[Path],
    trials: int | None,
    only: Sequence[str] | None,
    settings: Sequence[str] | None,
    *,
    tiny: bool,
    options: Sequence[str] = (),
    data: Path | None = None,
) -> str:
    """The commands that train what is missing (in one results folder) and write the report again."""
    chosen = selection(suites, trials, only, settings, tiny=tiny)
    folders = _repeated("--results", results)
    places = [*(folders if len(results) == 1 else []), *(["--data", str(data)] if data else [])]
    train = ["kdbench", "run", *chosen, *places]
    write = ["kdbench", "report", *chosen, *folders, "-f", "html", *options, "-o", "report.html"]
    return "\n".join(map(shell_line, [train, write] if suites else [write]))


def selection(
    suites: Sequence[str],
    trials: int | None,
    only: Sequence[str] | None,
    settings: Sequence[str] | None,
    *,
    tiny: bool,
) -> list[str]:
    """The words of a command that choose these suites, or a part of them."""
    names = [f"./{name}" if name.startswith("-") else name for name in suites]
    chosen = [*names, *["--tiny"] * tiny, *_repeated("--trials", [trials] if trials else [])]
    return [*chosen, *_repeated("--only", only or ()), *_repeated("--set", settings or ())]


def _repeated(name: str, values: Sequence[object]) -> list[str]:
    return [text for value in values for text in (name, str(value))]


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", parser=results_folder, help="A results folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", parser=results_folder, help="Another.")],
    suites: ReportedSuites = None,
    format: FormatOption = Format.terminal,
    mix_versions: MixVersions = False,
    output: Output = None,
    trials: Trials = None,
    only: Only = None,
) -> None:
    """Compare two results folders cell by cell: means, their difference, and what is in one of them only."""
    from kdbench.reporting import comparison, csv_json

    if format is Format.html:
        raise BadInput("--format html: there is no page of a comparison. Take another format, or kdbench report")
    folders = [first, second]
    loaded, stores = load(suites, folders, trials, only)
    compared = comparison.compare(loaded, *stores, mix_versions=mix_versions)
    if not compared:
        names = ", ".join(suite.name for suite in loaded)
        raise BadInput(f"{first} and {second} hold no finished run of {names}")
    if format is Format.csv:
        text = csv_json.comparison_csv(compared)
    elif format is Format.json:
        text = csv_json.comparison_json(compared, folders)
    else:
        text = write_tables([suite.table for suite in compared], format, for_terminal(ReportOptions(), output))
    print_text(text, output)
