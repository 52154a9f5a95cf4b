"""Accuracy against cost, published against measured, and critical differences of ranks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.errors import BadInput
from kdbench.plots.data import LABELS, Source, choose, costs, ordered, rows_of, tidy
from kdbench.plots.lines import provenance
from kdbench.plots.style import (
    Picture,
    colour,
    counts,
    legend,
    method_style,
    method_styles,
    note,
    panels,
    point_handle,
    title,
)
from kdbench.reporting.cells import Verdict, verdict
from kdbench.reporting.keys import KEY
from kdbench.reporting.paired_tests import Ranking, rank_methods


COSTS = {"seconds": "seconds of training", "macs": "multiply-accumulates of training"}


def cost(source: Source) -> Picture:
    """Accuracy against the measured cost of training, with the Pareto front: no method is both cheaper and better."""
    metric = choose("--metric", (source.options.metrics or ("seconds",))[0], list(COSTS), "a cost is seconds or macs")
    data = costs(source, metric).dropna(subset=["cost", "mean"])
    if not len(data):
        raise BadInput("no finished run says what it cost")
    data = data.assign(front=pareto_front(data))
    figure = draw_cost(data, COSTS[metric], source.options.order)
    devices = sorted({name for text in data["devices"] for name in text.split()})
    mixed = (
        f"trained on {' and '.join(devices)}: seconds do not compare"
        if len(devices) > 1 and metric == "seconds"
        else ""
    )
    note(
        figure,
        *provenance(data["n"], "bars", source.runs),
        "cost of a run: its share of its cohort, without the teacher; grey line: Pareto front",
        mixed,
    )
    columns = ["panel", "method", "cost", "mean", "sd", "n", "planned", "front", "devices", "values"]
    return Picture(figure, tidy(data, columns).rename(columns={"cost": metric}))


def pareto_front(data: pd.DataFrame) -> pd.Series:
    """Whether no other cell of a row's panel is as cheap and better, or as good and cheaper."""
    parts = []
    for _, part in data.groupby("panel", sort=False):
        points = list(zip(part["cost"], part["mean"], strict=True))
        unbeaten = [
            not any((other <= cost and better > mean) or (other < cost and better >= mean) for other, better in points)
            for cost, mean in points
        ]
        parts.append(pd.Series(unbeaten, index=part.index))
    return pd.concat(parts)


def draw_cost(data: pd.DataFrame, label: str, order: tuple[str, ...] = ()) -> Figure:
    """Points with error bars and a stepped front, from the columns panel, method, cost, mean, sd and front."""
    names, styles = list(dict.fromkeys(data["panel"])), method_styles(ordered(data["method"], order))
    figure, axes = panels(len(names))
    for at, panel in zip(axes, names, strict=True):
        shown = data[data["panel"] == panel]
        front = shown[shown["front"]].sort_values("cost")
        at.step(front["cost"], front["mean"], where="post", color="#bbbbbb", linewidth=1.5, zorder=1)
        for row in rows_of(shown):
            style = styles[str(row.method)]
            at.errorbar(
                row.cost, row.mean, None if row.sd != row.sd else row.sd, fmt=style.marker, color=style.colour,
                mfc=style.face, ms=5, elinewidth=0.7,
            )  # fmt: skip
        if shown["cost"].max() > 8 * shown["cost"].min():
            at.set_xscale("log")
        else:
            at.set_xlim(0, 1.1 * shown["cost"].max())
        at.set(xlabel=label, ylabel=LABELS["top1"])
        title(at, panel)
    legend(figure, [point_handle(style) for style in styles.values()], list(styles))
    return figure


VERDICTS = {
    Verdict.agrees: ("blue", "o"),
    Verdict.above: ("green", "^"),
    Verdict.below: ("vermillion", "v"),
    Verdict.few: ("grey", "s"),
    "": ("grey", "x"),
}
"""Colour and marker of each verdict; "" where nothing is judged."""


def scatter(source: Source) -> Picture:
    """Measured against published numbers with the diagonal; colours say whether they agree."""
    papers = [table.cells.assign(table=table.layout.id) for table in source.report.papers]
    grids = [table.cells.assign(table=table.group.title, metric="top1") for table in source.report.grids]
    whole = pd.concat([*papers, *grids], ignore_index=True) if papers or grids else pd.DataFrame()
    known = whole[whole["percent"].astype(bool)].dropna(subset=["mean", "published"]) if len(whole) else whole
    if not len(known):
        raise BadInput("no cell of these suites has both a measured and a published number of the same training")
    data = known.assign(verdict=verdict(known)).drop_duplicates([name for name in KEY if name in known])
    figure = draw_scatter(data)
    note(
        figure,
        *provenance(data["n"], "vertical bars", source.runs),
        "horizontal bars: published sd",
        "agrees: within two published deviations, or 0.5 points where none is printed",
    )
    columns = ["table", "method", "teacher", "student", "dataset", "setting", "published", "published_sd"]
    return Picture(figure, tidy(data, [*columns, "mean", "sd", "n", "verdict"]))


def draw_scatter(data: pd.DataFrame) -> Figure:
    """Points with error bars around the diagonal, from published, published_sd, mean, sd and verdict."""
    figure, (axes,) = panels(1, height=2.9)
    low, high = (
        find(float(data[name].agg(how)) for name in ("mean", "published")) for find, how in ((min, "min"), (max, "max"))
    )
    room = 0.06 * (high - low) or 1.0
    ends = (low - room, high + room)
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1, zorder=1)
    handles, labels = [], []
    for name, (shade, marker) in VERDICTS.items():
        part = data[data["verdict"] == name]
        if len(part):
            drawn: dict[str, Any] = {"marker": marker, "color": colour(shade), "linestyle": "", "ms": 3.5}
            axes.errorbar(
                part["published"], part["mean"], part["sd"].fillna(0), part["published_sd"].fillna(0), elinewidth=0.5,
                capsize=0, alpha=0.85, **drawn,
            )  # fmt: skip
            handles.append(Line2D([], [], **drawn))
            labels.append(f"{name or 'not judged'} ({len(part)})")
    axes.set(xlim=ends, ylim=ends, xlabel="published (%)", ylabel="measured (%)", aspect="equal")
    legend(figure, handles, labels)
    return figure


def cd(source: Source) -> Picture:
    """Mean ranks of the methods over pairs of networks; a bar joins methods that Nemenyi's test does not tell apart."""
    found = [(table.group, rank_methods(table.samples)) for table in source.report.all_grids]
    ranked = [(group, ranking) for group, ranking in found if ranking.critical_difference is not None]
    if not ranked:
        why = next((ranking.why for _, ranking in found if ranking.why), "nothing is ranked")
        raise BadInput(f"no critical difference: {why}. It takes three methods on two pairs of networks or more")
    several = len(ranked) > 1
    figure, axes = panels(
        len(ranked), columns=1, wide=False, height=0.45 + 0.085 * max(len(each.ranks) for _, each in ranked)
    )
    for at, (group, ranking) in zip(axes, ranked, strict=True):
        draw_cd(at, ranking)
        if several:
            title(at, group.title)
    trials = [count for _, ranking in ranked for count in ranking.trials]
    note(
        figure,
        "mean rank, 1 is best; a bar joins methods that differ by less than the critical difference (Nemenyi, α = 0.05)",
        f"{counts((ranking.pairs for _, ranking in ranked), 'N')} pairs of networks, {counts(trials)} trials each",
        *provenance((), "", source.runs)[1:],
    )
    rows = [
        (group.title, method, rank, ranking.pairs, ranking.critical_difference, ranking.p)
        for group, ranking in ranked
        for method, rank in ranking.ranks.items()
    ]
    return Picture(figure, pd.DataFrame(rows, columns=["table", "method", "rank", "pairs", "critical_difference", "p"]))


def draw_cd(axes: Axes, ranking: Ranking) -> None:
    """Demšar's diagram: ranks on a line, names at both sides, and bars that join what is not significantly different."""
    methods = sorted(ranking.ranks, key=ranking.ranks.__getitem__)
    k, half, difference = len(methods), (len(methods) + 1) // 2, float(ranking.critical_difference or 0.0)
    axes.set(xlim=(0.6 - 0.22 * k, k + 0.4 + 0.22 * k), ylim=(-half - 2.2 - len(_cliques(ranking)) * 0.6, 2.2))
    axes.axis("off")
    axes.plot([1, k], [0, 0], color="black", linewidth=0.8)
    for whole in range(1, k + 1):
        axes.plot([whole, whole], [0, 0.25], color="black", linewidth=0.6)
        axes.text(whole, 0.4, str(whole), ha="center", va="bottom", fontsize=6)
    axes.plot([1, 1 + difference], [1.7, 1.7], color="black", linewidth=1.2, marker="|", markersize=4)
    axes.text(1.1 + difference + 0.015 * k, 1.7, f"CD = {difference:.2f}", va="center", fontsize=6)
    bars = _cliques(ranking)
    for at, (first, last) in enumerate(bars):
        height = -0.5 - 0.6 * at
        axes.plot([first - 0.04, last + 0.04], [height, height], color="#555555", linewidth=2.5, solid_capstyle="round")
    for at, method in enumerate(methods):
        left, rank, style = at < half, ranking.ranks[method], method_style(method)
        y = -1.2 - 0.6 * len(bars) - (at if left else k - 1 - at)
        end = 0.8 - 0.02 * k if left else k + 0.2 + 0.02 * k
        axes.plot([rank, rank, end], [0, y, y], color=style.colour, linewidth=0.8)
        axes.plot(rank, 0, style.marker, color=style.colour, mfc=style.face, ms=3.5)
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        axes.text(end + (-0.08 if left else 0.08), y, text, ha="right" if left else "left", va="center", fontsize=6.5)


def _cliques(ranking: Ranking) -> list[tuple[float, float]]:
    """The longest stretches of mean ranks that are shorter than the critical difference."""
    ranks = sorted(ranking.ranks.values())
    difference = float(ranking.critical_difference or 0.0)
    found: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if rank - first < difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
