"""What finished networks show, asked of ``kdbench.deployment.views`` for the runs of a report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdbench.errors import BadInput
from kdbench.plots.data import Source, ordered, records, rows_of, titled
from kdbench.reporting.report import Report


TEACHER = "teacher"


def finished(source: Source, *, trials: bool) -> pd.DataFrame:
    """The finished runs with ``panel`` and ``results``, by panel and method: of all trials, or of the first one.

    Raises BadInput where none is finished.
    """
    runs = titled(source.runs)
    done = runs[runs["status"] == "done"].drop_duplicates(["panel", "method", "run_id"])
    if not len(done):
        raise BadInput(f"no run of these suites is finished, and this picture needs trained networks. {source.train}")
    if not trials:
        done = done.sort_values("trial", kind="stable").drop_duplicates(["panel", "method"]).sort_index()
    found = records(source.report)
    if lost := [id for id in done["run_id"] if not found[id].weights_file.is_file()]:
        more = {0: "", 1: " and 1 more run"}.get(len(lost) - 1, f" and {len(lost) - 1} more runs")
        raise BadInput(
            f"the weights of {lost[0]}{more} are not there, and this picture needs them: those of tiny runs are not kept, "
            "so train without --tiny"
        )
    done = done.assign(results=[str(found[id].folder.parents[1]) for id in done["run_id"]])
    rank = {name: at for at, name in enumerate(ordered(done["method"], source.options.order))}
    return done.assign(rank=done["method"].map(rank)).sort_values(["panel", "rank", "trial"], kind="stable")


def with_teachers(runs: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Each panel's teacher before its students: rows of the method `teacher`, by a run that learned from it."""
    taught = {id: spec.teacher is not None for suite in report.suites for id, spec in suite.specs.items()}
    parts = []
    for _, part in runs.groupby("panel", sort=False):
        learned = part[[taught[id] for id in part["run_id"]]].head(1)
        parts += [learned.assign(method=TEACHER), part]
    return pd.concat(parts, ignore_index=True)


def ask(source: Source, view: str, runs: pd.DataFrame, **settings: Any) -> Any:
    """The view of the networks of ``runs``, in their order; rows of the method `teacher` stand for the runs' teachers."""
    networks = [
        {"run": row.run_id, "results": row.results, "of": TEACHER if row.method == TEACHER else "student"}
        for row in rows_of(runs)
    ]
    return source.ask({"view": view, "networks": networks, **settings})
