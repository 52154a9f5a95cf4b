"""The command line: a group whose commands are imported when they are called."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from kdbench import __version__
from kdbench.catalogue.text import nearest
from kdbench.cli.options import HELP_OPTIONS


COMMANDS = {
    "run": ("run:run", "Train what is missing of the suites, then print their tables."),
    "plan": ("plan:plan", "Show what would run: teachers, cohorts, runs, hours."),
    "status": (
        "cluster.status:status",
        "Show who works at what in a results folder, how far, since when, and what is left.",
    ),
    "watch": (
        "cluster.watch:watch",
        "Show the progress of what works in a results folder, from any machine that sees it.",
    ),
    "slurm": ("cluster.slurm:slurm", "Write a Slurm batch script: an array of tasks that share the runs of suites."),
    "report": ("report:report", "Print the suites' tables with the results so far."),
    "plot": ("plot:plot", "Draw a picture of results, or a figure of a paper."),
    "compare": ("report:compare", "Compare two results folders cell by cell."),
    "init": ("init:init", "Write a suite to start from, and a loss of your own with its test."),
    "validate": ("checks:validate", "Check suite files and report every problem at once."),
    "verify": ("checks:verify", "Compare the files of finished records with their checksums."),
    "list": (
        "listing:list_things",
        "List methods, models, datasets, protocols, suites, tables, figures, teachers or runs.",
    ),
    "show": ("show:show", "Show one thing in full: a method, a network, a suite, a run and its curve."),
    "evaluate": ("deploy:evaluate", "Measure a finished network: accuracy by class, calibration, size, latency."),
    "export-logs": (
        "plot:export_logs",
        "Write the learning curves of runs and teachers for TensorBoard, Weights & Biases or MLflow.",
    ),
    "export": ("deploy:export", "Write a finished network into a folder that is used without kdbench."),
    "data": ("data:data", "The data sets: status, download, prepare, samples."),
    "doctor": ("checks:doctor", "Check versions, devices, data and permissions."),
    "results": ("results:app", "Move and tidy results: merge, pack, verify, prune."),
    "teachers": ("teachers:app", "The teachers in a results folder: list, train, import, verify, export."),
}
"""Where each command is, and its line in `kdbench --help`, which imports none of them."""


class LazyGroup(TyperGroup):
    """Imports a command when it is called or completed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=summary) for name, (_, summary) in COMMANDS.items()}

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, under one name however it was started."""
        return super().main(*args, **({"prog_name": self.name} | options))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the placeholder that is listed in the help by the command itself."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, placeholder and _command(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a wrong value of an option gets the nearest right one as a hint."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _with_suggestion(error.message)
            raise


def _command(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(":")
    commands = getattr(import_module(f"kdbench.cli.{module}"), attribute)
    if not isinstance(commands, typer.Typer):
        function, commands = commands, typer.Typer(add_completion=False, context_settings=HELP_OPTIONS)
        commands.command(name)(function)
    return get_command(commands)


def _with_suggestion(message: str) -> str:
    """``'htlm' is not one of 'csv', 'html'.`` with the nearest of these."""
    message = message.removeprefix("Value error, ")
    wrong = re.match(r"(['\"])(.*?)\1 is not one of (.*)", message, flags=re.DOTALL)
    near = nearest(wrong[2], re.findall("'(.*?)'", wrong[3])) if wrong else None
    return f"{message} Did you mean '{near}'?" if near else message


app = typer.Typer(
    name="kdbench",
    cls=LazyGroup,
    help="A benchmark suite for knowledge distillation: grids of teachers, students and methods, trained and tabulated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Knowledge distillation, benchmarked: kdbench run SUITE trains what is missing and prints the suite's tables."""
