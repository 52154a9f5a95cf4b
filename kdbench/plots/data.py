"""What pictures show, as DataFrames made from a report: one row per mark, with mean, deviation and number of trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdbench.catalogue.text import listed, nearest
from kdbench.errors import BadInput
from kdbench.reporting.cells import summarise
from kdbench.reporting.keys import CELL, GROUP, pair_text, split_method, tuples
from kdbench.reporting.report import Report
from kdbench.reporting.tables import grid_cells
from kdbench.store.record import Record
from kdbench.store.result import compute_of
from kdbench.suite.suite import Run


@dataclass(frozen=True)
class PlotOptions:
    """What a kind of picture can be told.

    metrics: what curves show, by its recorded name; the cost of ``cost``; the source of ``bars``
    over:    the setting along the axis
    lines:   methods that are horizontal lines across bars
    target:  the method whose improvement over the others is shown
    classes: names of classes
    images:  positions of test images
    order:   of the methods, those that are not named last
    most_images: how many points a t-SNE may have
    """

    metrics: tuple[str, ...] = ()
    over: str | None = None
    lines: tuple[str, ...] = ()
    target: str | None = None
    classes: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    order: tuple[str, ...] = ()
    most_images: int | None = None


Request = Callable[[dict[str, Any]], Any]
"""What networks give: a request to ``kdbench.deployment.views``, and its answer."""


def _no_networks(request: dict[str, Any]) -> Any:
    raise BadInput("this picture needs networks: name a data folder")


@dataclass(frozen=True, eq=False)
class Source:
    """What a picture is made from: a report, options, numbers that a paper's text gives, and the networks.

    published: by method, teacher and student; "" stands for any
    train:     what trains the runs that are missing, in words
    note:      what is to be said below the picture besides
    """

    report: Report
    options: PlotOptions = field(default_factory=PlotOptions)
    published: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    ask: Request = _no_networks
    train: str = ""
    note: str = ""

    @property
    def runs(self) -> pd.DataFrame:
        return self.report.runs

    def stated(self, method: str, teacher: str, student: str) -> float:
        """The number that the paper's text gives for a cell, or NaN."""
        places = ((method, teacher, student), (method, "", ""))
        return next((self.published[place] for place in places if place in self.published), float("nan"))


PLACE = ["suite", "teacher", "student", "dataset", "scenario", "strategy", "protocol"]
"""What the marks of one panel have in common."""


def own_run(report: Report) -> dict[str, Run]:
    """The suites' own run by id; of a tiny run, that in whose place it stands."""
    return {run.id: run.own for suite in report.suites for run in suite.runs}


def titled(frame: pd.DataFrame, place: Sequence[str] = PLACE) -> pd.DataFrame:
    """The frame with a column ``panel``: the pair of networks, and what else tells the panels apart."""
    pair = ["teacher", "student"]
    others = [name for name in place if name != "protocol"]
    varying = [name for name in place if name not in pair and frame[name].nunique() > 1]
    if "protocol" in varying and frame.groupby(others)["protocol"].nunique().max() == 1:
        varying.remove("protocol")
    titles = [
        ", ".join(part for part in (pair_text(row[:2]), *row[2:]) if part)
        for row in tuples(frame[[*pair, *varying]].astype(str))
    ]
    return frame.assign(panel=titles)


def cells(source: Source) -> pd.DataFrame:
    """The cells of all runs, with ``panel``, ``run_id`` of the first trial, and published numbers."""
    first = source.runs.drop_duplicates([*GROUP, *CELL])["run_id"].tolist()
    found = titled(grid_cells(source.runs).assign(run_id=first))
    stated = [source.stated(*map(str, cell)) for cell in rows_of(found[CELL])]
    return found.assign(published=found["published"].fillna(pd.Series(stated, index=found.index)))


def tidy(data: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """These columns for the CSV file; the values of each trial as text."""
    found = data[[name for name in columns if name in data]].reset_index(drop=True)
    if "values" in found:
        texts = [" ".join(f"{trial}:{value:.6g}" for trial, value in each.items()) for each in found["values"]]
        found = found.drop(columns="values").assign(trials=texts)
    return found


def rows_of(data: pd.DataFrame) -> Iterable[Any]:
    """The rows, with the columns as attributes."""
    return data.itertuples(index=False)


def ordered(names: Iterable[str], order: Sequence[str] = ()) -> list[str]:
    """The names in this order; those that are not named follow as they come."""
    found = list(dict.fromkeys(names))
    return [name for name in order if name in found] + [name for name in found if name not in order]


def choose(option: str, wanted: str, known: Sequence[str], what: str) -> str:
    """The wanted one of the known names. Raises BadInput with the nearest."""
    if wanted in known:
        return wanted
    near = nearest(wanted, known)
    hint = f"Did you mean '{near}'?" if near else f"There are {listed(list(known))}."
    raise BadInput(f"{option} {wanted}: {what}. {hint}")


def records(report: Report) -> dict[str, Record]:
    """The record of each run that has been begun, by id, from the store that provides it."""
    found = {}
    for id, status in rows_of(report.runs[["run_id", "status"]].drop_duplicates("run_id")):
        if status in ("done", "started"):
            known = [store.run(id) for store in report.stores]
            finished = (record for record in known if len(known) == 1 or record.done())
            found[id] = next(finished, next((each for each in known if each.metrics()), known[0]))
    return found


DERIVED = {"top1_error": "top1", "top5_error": "top5"}
"""Metrics that are 100 less another."""
LABELS = {
    "top1": "top-1 test accuracy (%)",
    "top5": "top-5 test accuracy (%)",
    "top1_error": "top-1 test error (%)",
    "top5_error": "top-5 test error (%)",
    "loss": "training loss",
    "train_error": "training error (%)",
    "lr": "learning rate",
    "terms.ce": "cross-entropy on training images",
}
"""How metrics are called on axes."""


def learning_curves(report: Report, metrics: Sequence[str], order: Sequence[str] = ()) -> pd.DataFrame:
    """Mean and deviation over trials of what the runs record, by panel, method, metric and epoch.

    metrics: names of scalars in the records; ``terms.NAME`` is a term, ``top1_error`` 100 less top1

    Raises BadInput for a metric that no run records.
    """
    rows: list[tuple[Any, ...]] = []
    known: set[str] = set()
    found = records(report)
    at = titled(report.runs)
    for row in rows_of(at[["panel", "method", "trial", "run_id"]]):
        for epoch in found[row.run_id].metrics() if row.run_id in found else ():
            scalars = _scalars(epoch)
            known |= scalars.keys()
            rows += [
                (row.panel, row.method, name, epoch.get("epoch"), row.trial, scalars[name], "")
                for name in metrics
                if name in scalars
            ]
    for name in metrics if known else ():
        choose("--metric", name, sorted(known), "no run of these records it")
    by = ["panel", "method", "metric", "epoch"]
    frame = pd.DataFrame(rows, columns=[*by, "trial", "value", "reason"])
    if not len(frame):
        return frame.assign(mean=[], sd=[], n=[])
    summary = summarise(frame, by).reset_index()
    rank = {method: at for at, method in enumerate(ordered(report.runs["method"], order))}
    return summary.assign(rank=summary["method"].map(rank)).sort_values(
        ["panel", "rank", "metric", "epoch"], kind="stable"
    )


def _scalars(epoch: dict[str, Any]) -> dict[str, float]:
    """The numbers of one epoch by name."""
    flat = {name: value for name, value in epoch.items() if isinstance(value, int | float) and name != "epoch"}
    terms = epoch.get("terms")
    if isinstance(terms, dict):
        flat |= {f"terms.{name}": value for name, value in terms.items() if isinstance(value, int | float)}
    return flat | {name: 100 - flat[source] for name, source in DERIVED.items() if source in flat}


SCENARIO = {"fraction": "share of the training images", "label_noise": "share of wrong labels", "batch": "batch size"}
"""Settings that are no part of a method, and how axes call them."""


def swept(source: Source, over: str | None) -> tuple[pd.DataFrame, str]:
    """The cells along a setting, and its name: ``x``, ``series``, and ``flat`` for methods without the setting.

    The setting is a number in the brackets of methods' names, such as `beta` of `semckd[beta=400]`, or one of SCENARIO.
    A word in the brackets makes a series of its own. Raises BadInput unless exactly one setting varies or is named.
    """
    frame = cells(source)
    settings, varying = _varying(source, frame)
    if over is None and len(varying) != 1:
        found = f"several settings vary ({', '.join(varying)})" if varying else "no setting varies"
        raise BadInput(f"{found}: name one with --over, or draw bars" if varying else f"{found}: draw bars instead")
    over = choose("--over", over or varying[0], varying, "no setting of these runs varies under this name")
    frame = frame.assign(x=settings[over].to_numpy(), words=settings["words"].to_numpy())
    bracket = over not in SCENARIO
    plain = ~frame["method"].str.contains("[", regex=False)
    frame = frame[frame["x"].notna() | plain] if bracket else frame[frame["x"].notna()]
    frame = frame.assign(flat=frame["x"].isna())
    base = [split_method(method)[0] for method in frame["method"]]
    lines = set(frame.loc[frame["flat"], "method"])
    inside = [
        ", ".join([over] * (name in lines or bool(words)) + words)
        for name, words in zip(base, frame["words"], strict=True)
    ]
    named = [f"{name}[{text}]" if text else name for name, text in zip(base, inside, strict=True)]
    series = frame["method"].where(frame["flat"] | (not bracket), named)
    dropped = {"fraction": ["scenario"], "label_noise": ["scenario"], "batch": ["protocol"]}.get(over, [])
    place = [name for name in PLACE if name not in dropped]
    whole = titled(frame.assign(series=series), place)
    return whole[whole["panel"].isin(whole.loc[~whole["flat"], "panel"])], over


def varying_settings(source: Source) -> list[str]:
    """The settings that ``swept`` can lay along an axis."""
    return _varying(source, cells(source))[1]


def _varying(source: Source, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The settings of each cell, and the names of those that vary."""
    runs = own_run(source.report)
    settings = pd.DataFrame(
        [_settings(runs[id], method) for id, method in zip(frame["run_id"], frame["method"], strict=True)]
    )
    return settings, [str(name) for name in settings if name != "words" and settings[name].nunique() > 1]


def _settings(run: Run, method: str) -> dict[str, Any]:
    """The numbers that a sweep may vary, and the words in the method's brackets."""
    spec = run.spec
    found: dict[str, Any] = {
        "fraction": spec.scenario.fraction,
        "label_noise": spec.scenario.label_noise,
        "batch": spec.recipe.batch,
    }
    words = []
    for part in filter(None, map(str.strip, split_method(method)[1].split(","))):
        key, _, value = part.partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            words.append(part)
    return found | {"words": words}


def costs(source: Source, metric: str) -> pd.DataFrame:
    """The cells with their mean ``cost``, of the trials that have one, and the ``devices`` that trained them.

    metric: `seconds` or `macs`, multiply-accumulates
    """
    found = {id: compute_of(record.metadata()) for id, record in records(source.report).items()}
    runs = source.runs.assign(
        cost=[
            getattr(found[id], metric) if id in found and found[id].device else float("nan")
            for id in source.runs["run_id"]
        ],
        device=[found[id].device if id in found else "" for id in source.runs["run_id"]],
    )
    by = [*GROUP, *CELL]
    grouped = runs.groupby(by, sort=False)
    return cells(source).assign(
        cost=grouped["cost"].mean().to_numpy(),
        devices=grouped["device"].agg(lambda each: " ".join(sorted(set(each) - {""}))).to_numpy(),
    )


def attention_maps(report: Report) -> pd.DataFrame:
    """The attention between layers that runs record in their last epoch: mean and deviation over trials."""
    rows = []
    found = records(report)
    for row in rows_of(titled(report.runs)[["panel", "method", "trial", "run_id"]]):
        epochs = found[row.run_id].metrics() if row.run_id in found else []
        matrix: list[list[float]] = next((epoch["attention"] for epoch in reversed(epochs) if "attention" in epoch), [])
        rows += [
            (row.panel, row.method, f"S{s + 1}", f"T{t + 1}", row.trial, value, "")
            for s, line in enumerate(matrix)
            for t, value in enumerate(line)
            if len(line) > 1  # a single pair of layers has all of it
        ]
    by = ["panel", "method", "row", "column"]
    frame = pd.DataFrame(rows, columns=[*by, "trial", "value", "reason"])
    return summarise(frame, by).reset_index() if rows else frame
