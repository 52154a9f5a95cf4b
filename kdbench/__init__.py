"""A benchmark suite for knowledge distillation in image classification.

>>> import kdbench
>>> kdbench.run("demo")
>>> df = kdbench.results("results", "demo")

load_suite, plan, run           a suite, what is left to train, its training
results, tables, report         values and tables as DataFrames, a report as text
build_model, load_student       a network with fresh weights, a trained student
evaluate                        accuracy by class, calibration, size and latency of a finished network
export                          a finished network in a folder that is used without kdbench
Term, TermContext               a loss term and what it is built for; kdbench.methods.build_term builds one
Outputs, Batch                  what a term gets from the networks and the stream

Errors are subclasses of kdbench.errors.KdbenchError; bad input is kdbench.errors.BadInput. The names are imported when they
are first used.
"""

from __future__ import annotations

from importlib import import_module


TYPE_CHECKING = False  # type checkers take it for True; the import of typing would cost more than all of this module
if TYPE_CHECKING:
    from kdbench.api import evaluate, export, load_student, load_suite, plan, report, results, run, tables
    from kdbench.data.batch import Batch
    from kdbench.methods.term import Term, TermContext
    from kdbench.models.build import build as build_model
    from kdbench.models.outputs import Outputs

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Outputs",
    "Term",
    "TermContext",
    "build_model",
    "evaluate",
    "export",
    "load_student",
    "load_suite",
    "plan",
    "report",
    "results",
    "run",
    "tables",
]

_HOMES = {
    "Batch": "kdbench.data.batch:Batch",
    "Outputs": "kdbench.models.outputs:Outputs",
    "Term": "kdbench.methods.term:Term",
    "TermContext": "kdbench.methods.term:TermContext",
    "build_model": "kdbench.models.build:build",
    **{
        name: f"kdbench.api:{name}"
        for name in ("evaluate", "export", "load_student", "load_suite", "plan", "report", "results", "run", "tables")
    },
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
