"""Learning curves, and curves over a setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from kdbench.plots.data import LABELS, SCENARIO, Source, cells, learning_curves, ordered, own_run, rows_of, swept, tidy
from kdbench.plots.style import (
    Picture,
    Style,
    legend,
    limits,
    line_handle,
    mark_published,
    mark_published_line,
    method_styles,
    note,
    panels,
    published_handle,
    spread,
    title,
)
from kdbench.reporting.captions import score_rules, warning


def curves(source: Source) -> Picture:
    """What runs record by epoch, one panel per pair of networks and metric; published accuracies at the last epoch."""
    metrics = source.options.metrics or ("top1",)
    data = learning_curves(source.report, metrics, source.options.order)
    data = pd.concat([data, _end_points(source, metrics)], ignore_index=True)
    figure = draw_curves(data, metrics, source.options.order)
    note(figure, *provenance(data["n"], "bands", source.runs), source.note)
    columns = ["panel", "method", "metric", "epoch", "mean", "sd", "n", "values", "published"]
    return Picture(figure, tidy(data, columns))


def _end_points(source: Source, metrics: Sequence[str]) -> pd.DataFrame:
    """Published accuracies and errors, at the last epoch of the training."""
    runs = own_run(source.report)
    rows: list[dict[str, Any]] = [
        {
            "panel": row["panel"],
            "method": row["method"],
            "metric": metric,
            "epoch": runs[row["run_id"]].spec.recipe.epochs,
        }
        | {"published": row["published"] if metric == "top1" else 100 - row["published"], "n": 0, "values": {}}
        for row in cells(source).dropna(subset="published").to_dict("records")
        for metric in metrics
        if metric in ("top1", "top1_error")
    ]
    columns = ["panel", "method", "metric", "epoch", "published", "n", "values"]
    return pd.DataFrame(rows, columns=columns).astype({"published": float, "n": int})


def draw_curves(data: pd.DataFrame, metrics: Sequence[str], order: Sequence[str] = ()) -> Figure:
    """Mean curves with a band of one deviation, from the columns panel, method, metric, epoch, mean, sd and n."""
    places = [(panel, metric) for panel in dict.fromkeys(data["panel"]) for metric in metrics]
    figure, axes = panels(len(places))
    styles = method_styles(ordered(data["method"], order))
    for at, (panel, metric) in zip(axes, places, strict=True):
        shown = data[(data["panel"] == panel) & (data["metric"] == metric)]
        for number, (method, style) in enumerate(styles.items()):
            _curve(at, shown[shown["method"] == method], style, number)
        at.set(xlabel="epoch", ylabel=LABELS.get(metric, metric))
        title(at, panel)
        at.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if not len(shown):
            at.set(xticks=[], yticks=[])
            at.text(0.5, 0.5, "no run yet", transform=at.transAxes, ha="center", color="#808080")
    handles, labels = [line_handle(style) for style in styles.values()], list(styles)
    if data["published"].notna().any():
        handles.append(published_handle())
        labels.append("published")
    legend(figure, handles, labels)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, style: Style, number: int) -> None:
    points = rows.dropna(subset="mean")
    x, y, sd = (points[name].to_numpy(dtype=float) for name in ("epoch", "mean", "sd"))
    every = max(1, len(x) // 6)
    face, marks = style.face, (number % every, every)
    axes.plot(x, y, color=style.colour, linestyle=style.line, marker=style.marker, mfc=face, ms=3, markevery=marks)
    if np.isfinite(sd).any():
        axes.fill_between(x, y - sd, y + sd, color=style.colour, alpha=0.15, linewidth=0)
    known = rows.dropna(subset="published")
    mark_published(axes, known["epoch"], known["published"], style)


def sweep(source: Source) -> Picture:
    """Accuracy over a setting, one panel per pair of networks; methods without the setting are horizontal lines."""
    data, over = swept(source, source.options.over)
    figure = draw_sweep(data, over, source.options.order)
    note(figure, *provenance(data["n"], "bars, bands", source.runs))
    columns = ["panel", "series", "method", "x", "mean", "sd", "n", "planned", "note", "values", "published"]
    return Picture(figure, tidy(data, columns).rename(columns={"x": over}))


def draw_sweep(data: pd.DataFrame, over: str, order: Sequence[str] = ()) -> Figure:
    """Curves with error bars, from the columns panel, series, method, x (NaN: a horizontal line), mean, sd and published.

    Where two methods have ranges of the setting that do not meet, the second has an axis of its own above the panel.
    """
    names = list(dict.fromkeys(data["panel"]))
    figure, axes = panels(len(names))
    series = _series(data, order)
    for at, panel in zip(axes, names, strict=True):
        shown = data[data["panel"] == panel]
        second = _far_series(shown)
        above = at.twiny() if second else None
        for name, style in series.items():
            rows = shown[shown["series"] == name]
            _swept_line(above if above and name in second else at, rows, style)
        label = SCENARIO.get(over, over)
        at.set(ylabel=LABELS["top1"], xlabel=f"{label} ({_bare(_ours(shown, second))})" if above else label)
        _ticks(at, shown.loc[~shown["series"].isin(second), "x"])
        if above:
            above.set_xlabel(f"{label} ({_bare(second)})")
            above.grid(False)
            above.spines["top"].set_visible(True)
            _ticks(above, shown.loc[shown["series"].isin(second), "x"])
        title(at, panel)
        if found := limits(
            [*shown["mean"], *shown["published"], *(shown["mean"] - shown["sd"]), *(shown["mean"] + shown["sd"])]
        ):
            at.set_ylim(found)
    handles = [
        line_handle(style, marker=name not in set(data.loc[data["flat"], "series"])) for name, style in series.items()
    ]
    labels = list(series)
    if data["published"].notna().any():
        handles.append(published_handle())
        labels.append("published")
    legend(figure, handles, labels)
    return figure


def _series(data: pd.DataFrame, order: Sequence[str]) -> dict[str, Style]:
    """The style of each series: its method's; a horizontal line of one is never solid."""
    found = method_styles(ordered(data["series"], order))
    for name, style in found.items():
        if data.loc[data["series"] == name, "flat"].all() and style.line == "solid":
            found[name] = style._replace(line=(0, (1, 1)))
    return found


def _far_series(rows: pd.DataFrame) -> list[str]:
    """The series whose settings all lie below or above those of the first: they need an axis of their own."""
    ranges = rows.dropna(subset="x").groupby("series", sort=False)["x"].agg(["min", "max"])
    if len(ranges) < 2:
        return []
    first, rest = ranges.iloc[0], ranges.iloc[1:]
    apart = rest[(rest["max"] < first["min"]) | (rest["min"] > first["max"])]
    return list(apart.index)


def _ours(rows: pd.DataFrame, second: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(rows.loc[~rows["flat"], "series"]) if name not in second]


def _bare(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.partition("[")[0] for name in names))


def _swept_line(axes: Axes, rows: pd.DataFrame, style: Style) -> None:
    for row in rows_of(rows[rows["flat"]]):
        axes.axhline(row.mean if row.mean == row.mean else row.published, color=style.colour, linestyle=style.line)
        mark_published_line(axes, row.published, style)
        if row.sd == row.sd:
            axes.axhspan(row.mean - row.sd, row.mean + row.sd, color=style.colour, alpha=0.1, linewidth=0)
    points = rows[~rows["flat"]].sort_values("x")
    measured = points.dropna(subset="mean")
    axes.errorbar(
        measured["x"], measured["mean"], measured["sd"].fillna(0), color=style.colour, linestyle=style.line,
        marker=style.marker, mfc=style.face, elinewidth=0.8,
    )  # fmt: skip
    known = points.dropna(subset="published")
    mark_published(axes, known["x"], known["published"], style)


def _ticks(axes: Axes, settings: pd.Series) -> None:
    """Ticks at the settings; a logarithmic axis where each is about as many times the one before."""
    x = sorted(set(settings.dropna()))
    if not x:
        return
    ratios = [b / a for a, b in pairwise(x) if a > 0]
    if x[0] > 0 and len(x) > 2 and min(ratios) > 1.3 and max(ratios) / min(ratios) < 1.3:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(x[0] / 1.2, x[-1] * 1.2)
    else:
        room = 0.05 * (x[-1] - x[0]) or 1.0
        axes.set_xlim(x[0] - room, x[-1] + room)
    every = math.ceil(len(x) / 8)
    axes.xaxis.set_major_locator(FixedLocator(x[::every]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in x[::every]]))


def provenance(n: Iterable[float], mark: str, runs: pd.DataFrame) -> list[str]:
    """The parts of a note: what the marks are, over how many trials, of which epoch, under which protocols."""
    return [spread(n, mark), score_rules(runs["score"]), *origin(runs)]


def origin(runs: pd.DataFrame) -> list[str]:
    """The parts of a note that say how the runs were trained."""
    protocols = list(dict.fromkeys(runs["protocol"]))
    named = ", ".join(protocols) if len(protocols) < 4 else f"{protocols[0]} and {len(protocols) - 1} others"
    return [f"protocol {named}", *warning(protocols)]
