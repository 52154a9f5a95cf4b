"""`kdbench plot` and `kdbench export-logs`: pictures of results, the papers' figures, and curves for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.catalogue.pictures import KINDS, PaperFigure, paper_figure
from kdbench.catalogue.text import nearest, shell_line
from kdbench.cli.completion import complete_figures, complete_methods, complete_pictures
from kdbench.cli.options import Data, Only, Set, Tiny, Trials, networks_of, path, plots_module, say
from kdbench.cli.report import Folders, load
from kdbench.errors import BadInput, KdbenchError, message_of
from kdbench.suite.load import bundled_suites
from kdbench.suite.selection import select
from kdbench.tracking import Tool, open_tracker, scalars, stored_curves


if TYPE_CHECKING:
    from kdbench.plots.style import Picture
    from kdbench.suite.suite import Suite


_KINDS = "\n\n".join(f"{name}: {kind.summary}." for name, kind in KINDS.items())
_NAMES = {
    "metrics": "--metric",
    "over": "--over",
    "lines": "--line",
    "target": "--target",
    "classes": "--class",
    "images": "--image",
}
"""The options that not every kind of picture takes."""


@dataclass(frozen=True)
class _Wanted:
    """A picture that is asked for, of its own kind or as in a paper."""

    kind: str
    suites: list[str]
    options: dict[str, Any]
    only: list[str]
    figure: PaperFigure | None = None


def plot(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND [SUITE…]",
            autocompletion=complete_pictures,
            help=f"The kind of picture, then suites (default: every suite with results). {_KINDS}",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=path,
            metavar="FILE",
            help="The picture: .png, .svg or .pdf. Its data: .csv beside it.",
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            "--paper",
            metavar="NAME",
            autocompletion=complete_figures,
            help="A paper's figure (kdbench list figures), of its suite, or of the SUITE that is named instead.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="curves: what is drawn: top1, train_error, terms.kd …; may be repeated. cost: seconds or macs. bars: probe.",
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--over", metavar="SETTING", help="sweep: fraction, label_noise, batch, or what methods have in brackets."
        ),
    ] = None,
    line: Annotated[
        list[str] | None,
        typer.Option(
            "--line", autocompletion=complete_methods, help="bars: draw this method as a line; may be repeated."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", autocompletion=complete_methods, help="improvement: of this method over the others."),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="tsne, gradcam: images of this class; may be repeated.")
    ] = None,
    images: Annotated[
        list[int] | None,
        typer.Option("--image", min=0, help="gradcam: the test image at this position, from 0; may be repeated."),
    ] = None,
    results: Folders = None,
    data: Data = Path("data"),
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
) -> None:
    """Draw a picture of results, or a figure of a paper; write it, and its data as CSV beside it."""
    given = {"metrics": metric, "over": over, "lines": line, "target": target, "classes": classes, "images": images}
    wanted = _wanted(names or [], paper, {key: value for key, value in given.items() if value})
    if output is None:
        raise BadInput("--output is missing: name the file of the picture, such as -o picture.png")
    style = plots_module("style")
    style.check_format(output)
    loaded, stores = load(wanted.suites, results, trials, [*wanted.only, *(only or ())], tiny=tiny, settings=settings)
    if wanted.figure:
        loaded = _methods_of(wanted.figure, loaded)
    train = ["kdbench", "run", *[suite.name if suite.name in bundled_suites() else suite.file for suite in loaded]]
    train += [part for each in wanted.only for part in ("--only", each)] + ["--tiny"] * tiny
    train += ["--results", str(stores[0].root)] if results else []
    picture = _draw(wanted, loaded, stores, networks_of(data), f"Train what is missing: {shell_line(train)}")
    written = style.write(picture, output)
    say(f"written to {' and '.join(map(str, written))}")


def _wanted(names: Sequence[str], paper: str | None, options: dict[str, Any]) -> _Wanted:
    """What the arguments ask for. Raises BadInput for an unknown kind or figure, and options that it does not take."""
    if paper is not None:
        figure = paper_figure(paper)
        if names and names[0] in KINDS:
            raise BadInput(f"--paper {paper} is a picture of the kind {figure.kind}: leave out '{names[0]}'")
        only = [] if names else list(figure.only)
        own = {key: value for key, value in figure.options.items() if not names or key != "classes"}
        wanted = _Wanted(figure.kind, list(names or figure.suites), {**own, **options}, only, figure)
    elif not names:
        raise BadInput(f"name a kind of picture ({', '.join(KINDS)}), or a figure with --paper (kdbench list figures)")
    else:
        kind, *suites = names
        if kind not in KINDS:
            near = nearest(kind, KINDS)
            hint = f"Did you mean '{near}'?" if near else f"There are {', '.join(KINDS)}."
            raise BadInput(f"no kind of picture is called '{kind}'. {hint}")
        wanted = _Wanted(kind, suites, options, [])
    for key in options:
        if key not in KINDS[wanted.kind].options:
            fit = [name for name, kind in KINDS.items() if key in kind.options]
            raise BadInput(f"{_NAMES[key]} is for {', '.join(fit)}, not {wanted.kind}: leave it out")
    return wanted


def _methods_of(figure: PaperFigure, suites: Sequence[Suite]) -> list[Suite]:
    """The part of suites with the figure's methods. Raises BadInput where there is none."""
    there = {run.method for suite in suites for run in suite.runs}
    shown = [method for method in figure.methods if method in there]
    if figure.methods and not shown:
        raise BadInput(f"the figure shows {', '.join(figure.methods)}, and no run of these suites has such a method")
    return select(suites, [f"method={','.join(shown)}"] if shown else None)


def _draw(wanted: _Wanted, suites: Sequence[Suite], stores: Any, ask: Any, train: str) -> Picture:
    from kdbench.reporting.report import measured_report

    data, figure = plots_module("data"), wanted.figure
    tiny, own = any(suite.tiny for suite in suites), bool(figure and wanted.suites != list(figure.suites))
    stated = {(each.method, each.teacher, each.student): each.value for each in figure.published} if figure else {}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in wanted.options.items()}
    source = data.Source(
        measured_report(suites, stores),
        data.PlotOptions(**options, order=figure.methods if figure else ()),
        published={} if tiny or own else stated,
        ask=ask,
        train=train,
        note=figure.note if figure and not own else "",
    )
    picture: Picture = plots_module("kinds").draw(wanted.kind, source)
    return picture


def export_logs(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites (default: every suite with results).", show_default=False)
    ] = None,
    to: Annotated[Tool, typer.Option("--to", help="What the curves are for.")] = Tool.tensorboard,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="FOLDER", help="A new or empty folder.")
    ] = Path("curves"),
    results: Folders = None,
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
) -> None:
    """Write the learning curves of runs and teachers for TensorBoard, Weights & Biases or MLflow. Nothing is sent."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output}: is not empty: name a new folder with -o")
    loaded, stores = load(suites, results, trials, only, tiny=tiny, settings=settings)
    found = list(stored_curves(loaded, stores))
    if not found:
        raise BadInput("no run of these suites has trained for an epoch yet: there are no curves")
    tracker = open_tracker(to, output, live=False)
    try:
        for curve, record, rows in found:
            for row in rows:
                tracker.log(curve, row["epoch"], scalars(row))
            tracker.end(curve, failed=record.failure() is not None and not record.done())
        tracker.close()
    except Exception as error:
        raise KdbenchError(f"{to} does not take the curves: {message_of(error)}") from None
    typer.echo(f"{len(found)} curves in {output}. {_NEXT[to].format(folder=output)}")


_NEXT = {
    Tool.tensorboard: "Look: tensorboard --logdir {folder}",
    Tool.wandb: "Upload: wandb sync {folder}/wandb/offline-run-*",
    Tool.mlflow: "Look: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}",
}
