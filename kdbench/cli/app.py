"""The commands."""

from __future__ import annotations

import typer

from kdbench import __version__
from kdbench.cli import teachers
from kdbench.cli.checks import doctor, validate, verify
from kdbench.cli.data import data, samples
from kdbench.cli.listing import list_things
from kdbench.cli.plan import plan
from kdbench.cli.report import compare, report
from kdbench.cli.run import run
from kdbench.cli.show import show


app = typer.Typer(
    name="kdbench",
    help="A benchmark suite for knowledge distillation: grids of teachers, students and methods, trained and tabulated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run)
app.command("plan")(plan)
app.command("report")(report)
app.command("compare")(compare)
app.command("validate")(validate)
app.command("verify")(verify)
app.command("list")(list_things)
app.command("show")(show)
data.command("samples")(samples)
app.add_typer(data, name="data")
app.command("doctor")(doctor)
app.add_typer(teachers.app, name="teachers")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Knowledge distillation, benchmarked: kdbench run SUITE trains what is missing and prints the suite's tables."""
