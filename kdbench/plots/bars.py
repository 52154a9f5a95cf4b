"""Bars of accuracies, single pairs of layers, gaps to the teacher, and relative improvements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from kdbench.errors import BadInput
from kdbench.plots.data import LABELS, PLACE, Source, cells, choose, ordered, rows_of, tidy, titled
from kdbench.plots.lines import provenance
from kdbench.plots.style import (
    Picture,
    Style,
    bar_handle,
    colour,
    counts,
    legend,
    line_handle,
    mark_published,
    mark_published_line,
    method_style,
    method_styles,
    note,
    panels,
    point_handle,
    published_handle,
    shades,
    title,
)
from kdbench.reporting.cells import summarise
from kdbench.reporting.html import own_methods
from kdbench.reporting.keys import GROUP, grouped, pair_text, published_for
from kdbench.reporting.paired_tests import relative_improvement


BARS_PER_ROW = 40
PAIR = ["teacher", "student"]


def bars(source: Source) -> Picture:
    """Accuracies of methods, side by side for each pair of networks; of linear probes with the metric `probe`."""
    data = _probes(source) if "probe" in source.options.metrics else cells(source)
    data = data.assign(group=data["panel"], panel="", series=data["method"])
    figure = draw_bars(data, source.options.lines, source.options.order)
    note(
        figure, *provenance(data["n"], "error bars; dots: trials", source.runs), _axis_note(data, source.options.lines)
    )
    columns = ["group", "method", "mean", "sd", "n", "planned", "note", "values", "published"]
    return Picture(figure, tidy(data, columns))


def _probes(source: Source) -> pd.DataFrame:
    """The accuracies of linear probes, a group for each pair and data set; the teacher's beside the students'."""
    seen = source.report.observations
    seen = seen[(seen["trained_on"] != "") & (seen["metric"] == "top1")]
    if not len(seen):
        raise BadInput("these suites train no linear probes: `measure: {probe: …}` in a suite does")
    if seen["value"].isna().all():
        raise BadInput(f"no linear probe of these suites is finished. {source.train}")
    pairs = seen.loc[seen["student"] != "", ["suite", "teacher", "student"]].drop_duplicates()
    teachers = seen[seen["student"] == ""].drop(columns="student").merge(pairs, on=["suite", "teacher"])
    whole = titled(
        pd.concat([seen[seen["student"] != ""], teachers]).assign(scenario=""), [n for n in PLACE if n != "strategy"]
    )
    whole = whole.drop_duplicates(["panel", "method", "run_id"])
    found = summarise(whole, ["panel", "method"]).reset_index()
    keys = whole.drop_duplicates(["panel", "method"])
    return found.assign(published=published_for(keys)["published"].to_numpy())


def layer_pairs(source: Source) -> Picture:
    """Accuracies with one pair of layers each, grouped by the student's layer; other methods are horizontal lines."""
    data = cells(source)
    layers = data["method"].str.extract(r"\[pair=(S\d+)-(T\d+)\]")
    if layers[0].isna().all():
        raise BadInput(
            "no method of these suites is named by a pair of layers, as semckd[pair=S1-T2] is: draw bars instead"
        )
    data = data.assign(group=layers[0].fillna(""), series=layers[1].fillna(data["method"]))
    data = data[layers[0].notna() | ~data["method"].str.contains("[", regex=False)]
    data = data[data["panel"].isin(data.loc[data["group"] != "", "panel"])]
    lines = [name for name in dict.fromkeys(data["series"]) if not name.startswith("T")]
    figure = draw_bars(data, lines, [f"T{at}" for at in range(1, 10)])
    note(figure, *provenance(data["n"], "error bars; dots: trials", source.runs), _axis_note(data, lines))
    return Picture(
        figure, tidy(data, ["panel", "method", "group", "series", "mean", "sd", "n", "note", "values", "published"])
    )


def draw_bars(data: pd.DataFrame, lines: Sequence[str], order: Sequence[str] = ()) -> Figure:
    """Grouped bars from the columns panel, group, series, mean, sd, values and published; ``lines`` are horizontal lines.

    Without panels, long rows of groups are broken.
    """
    series = [name for name in ordered(data["series"], order) if name not in lines]
    layers = all(name.startswith("T") and name[1:].isdigit() for name in series)
    styles = dict(zip(series, shades(len(series)), strict=True)) if layers else method_styles(series)
    rows = _rows(data, lines)
    several = data["panel"].nunique() > 1
    data = data.rename(columns={"values": "by_trial"})
    wide = several or len(data) > 14
    figure, axes = panels(len(rows), columns=None if several else 1, wide=wide, height=1.9)
    sizes = data[~data["series"].isin(lines)].groupby(["panel", "group"], sort=False).size() + 1
    widest = 0 if several else max(sizes.loc[[(panel, group) for group in groups]].sum() for panel, groups in rows)
    for at, (panel, groups) in zip(axes, rows, strict=True):
        shown = data[data["panel"] == panel]
        if panel:
            title(at, panel)
        at.set_xlim(-1, max(widest, _groups(at, shown, groups, styles)) - 1)
        _lines_across(at, shown, lines)
        at.set_ylim(*_span(data if not several else shown))
        at.set_ylabel(LABELS["top1"])
        at.grid(False, axis="x")
    handles = [
        *(bar_handle(styles[name]) for name in series),
        *(line_handle(_line(name), marker=False) for name in lines),
    ]
    labels = [*series, *lines]
    if data.loc[~data["series"].isin(lines), "published"].notna().any():
        handles.append(published_handle("d"))
        labels.append("published")
    legend(figure, handles, labels)
    return figure


def _rows(data: pd.DataFrame, lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The groups of each row or panel: rows of a panel end where the page does, and are about as long."""
    rows: list[tuple[str, list[str]]] = []
    for panel, part in data[~data["series"].isin(lines)].groupby("panel", sort=False):
        sizes = {str(group): count + 1 for group, count in part.groupby("group", sort=False).size().items()}
        fewest = len(_broken(sizes, BARS_PER_ROW))
        evenly = next(most for most in range(1, BARS_PER_ROW + 1) if len(_broken(sizes, most)) == fewest)
        rows += [(str(panel), groups) for groups in _broken(sizes, evenly)]
    return rows


def _broken(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Groups in rows of so many bars, or of one group that is larger."""
    rows: list[list[str]] = []
    room = 0
    for group, size in sizes.items():
        if size > room:
            rows.append([])
            room = most
        rows[-1].append(group)
        room -= size
    return rows


def _groups(axes: Axes, rows: pd.DataFrame, groups: Sequence[str], styles: dict[str, Style]) -> float:
    """Draw groups of bars, each bar one wide, with a gap of one between groups. Returns where the next would begin."""
    x, centres, rank = 0.0, [], {name: at for at, name in enumerate(styles)}
    for group in groups:
        part = rows[(rows["group"] == group) & rows["series"].isin(styles)]
        part = part.sort_values("series", key=lambda names: names.map(rank), kind="stable")
        centres.append(x + (len(part) - 1) / 2)
        for row in rows_of(part):
            _bar(axes, x, row, styles[str(row.series)])
            x += 1
        x += 1
    axes.set_xticks(centres, [group.replace(" → ", " →\n").replace(", ", ",\n") for group in groups])
    axes.tick_params(axis="x", length=0)
    return x


def _bar(axes: Axes, x: float, row: Any, style: Style) -> None:
    if row.mean == row.mean:
        axes.bar(x, row.mean, 0.9, color=style.colour, edgecolor="white", hatch=style.hatch)
    if row.sd == row.sd:
        axes.errorbar(x, row.mean, row.sd, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5)
        axes.plot([x] * len(row.by_trial), list(row.by_trial.values()), "o", ms=1.8, mfc="white", mec="black", mew=0.5)
    shade = "black" if row.mean == row.mean else style.colour
    mark_published(axes, [x], [row.published], style, marker="d", mfc="white", ms=4.5, color=shade)


def _line(name: str) -> Style:
    style = method_style(name)
    return style._replace(line="dashed" if style.line == "solid" else style.line)


def _lines_across(axes: Axes, rows: pd.DataFrame, lines: Sequence[str]) -> None:
    for name in lines:
        for row in rows_of(rows[rows["series"] == name]):
            value = row.mean if row.mean == row.mean else row.published
            axes.axhline(value, color=_line(name).colour, linestyle=_line(name).line)
            mark_published_line(axes, row.published, _line(name))


def _span(data: pd.DataFrame) -> tuple[float, float]:
    """The axis of bars: from a round number below the lowest value, so that differences can be seen."""
    spread = data["sd"].fillna(0)
    values = [*(data["mean"] - spread), *(data["mean"] + spread), *data["published"]]
    values += [value for each in data["by_trial"] for value in each.values()]
    known = [value for value in values if value == value] or [0.0, 100.0]
    low, high = min(known), max(known)
    room = max(high - low, 1.0)
    step = 10 if room > 30 else 5 if room > 10 else 1
    return max(0.0, step * math.floor((low - 0.15 * room) / step)), min(102.0, high + 0.1 * room)


def _axis_note(data: pd.DataFrame, lines: Sequence[str]) -> str:
    shown = data[~data["series"].isin(lines)].rename(columns={"values": "by_trial"})
    return "the axis does not begin at 0" if _span(shown)[0] > 0 else ""


def gap(source: Source) -> Picture:
    """How much of the gap between the plain student and its teacher a method closes, in %, by pair of networks.

    In each trial that both the method and ce have: (method - ce) / (teacher - ce).
    """
    rows = []
    for table in source.report.all_grids:
        for pair in table.pairs if "ce" in table.methods else ():
            teacher = table.teachers.get(pair[0], float("nan"))
            for method in table.methods:
                shared = table.samples.common((method, "ce"), pair).tolist()
                shares = [100 * (value - plain) / (teacher - plain) for value, plain in shared if teacher > plain]
                if method != "ce" and shares:
                    rows.append((*table.group, *pair, method, fmean(shares), _sd(shares), len(shares)))
    data = titled(pd.DataFrame(rows, columns=[*GROUP, *PAIR, "method", "mean", "sd", "n"]))
    if not len(data):
        raise BadInput("no trial has a method, the plain student (ce) and a better teacher: run these first")
    figure = draw_gap(data, source.options.order)
    note(
        figure,
        *provenance(data["n"], "bars", source.runs),
        "share of the gap between ce (0) and the teacher (100) that a method closes, over trials that both have",
    )
    return Picture(figure, tidy(data, ["panel", "method", "mean", "sd", "n"]))


def _sd(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else float("nan")


def draw_gap(data: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Points with error bars, a line for each method, from the columns panel, method, mean and sd."""
    pairs = list(dict.fromkeys(data["panel"]))
    means = data.groupby("method")["mean"].mean().sort_values()
    methods = [name for name in means.index if name not in order] + [
        name for name in reversed(order) if name in means.index
    ]
    figure, (axes,) = panels(1, height=0.4 + 0.2 * len(methods) + 0.06 * len(methods) * len(pairs) / 2)
    step = 0.7 / len(pairs)
    for at, pair in enumerate(pairs):
        part = data[data["panel"] == pair]
        y = [methods.index(method) + (len(pairs) / 2 - at - 0.5) * step for method in part["method"]]
        marker = "osD^vPXph"[at % 9]
        axes.errorbar(
            part["mean"], y, xerr=part["sd"].fillna(0), fmt="none", ecolor="#999999", elinewidth=0.8, capsize=1.5
        )
        for x, height, method in zip(part["mean"], y, part["method"], strict=True):
            style = method_style(method)
            axes.plot(x, height, marker, color=style.colour, mfc=style.face)
    axes.axvline(0, color=colour("grey"), linewidth=0.8)
    axes.axvline(100, color="black", linewidth=0.8, linestyle="dotted")
    axes.set_yticks(range(len(methods)), methods)
    axes.set(xlabel="gap to the teacher closed (%)", ylim=(-0.6, len(methods) - 0.4))
    axes.grid(False, axis="y")
    handles = [point_handle(Style("black", "solid", "osD^vPXph"[at % 9], "")) for at in range(len(pairs))]
    legend(figure, handles, pairs)
    return figure


def improvement(source: Source) -> Picture:
    """The relative improvement of a method over each other one, over all pairs of networks: measured and published.

    (target - other) / (other - ce), in %: what the target adds, in terms of what the other adds to the plain student.
    """
    runs = source.runs
    methods = list(dict.fromkeys(runs["method"]))
    own = [method for _, method in sorted(own_methods(source.report.suites)) if method in methods]
    if not source.options.target and not own:
        raise BadInput("--target is missing: name the method whose improvement over the others is shown")
    target = choose("--target", source.options.target or own[0], methods, "no run has this method")
    if "ce" not in methods:
        raise BadInput("a relative improvement needs the plain student: these suites have no runs of ce")
    data = pd.concat(
        [_improvements(part, target) for part in grouped(cells(source), GROUP).values()], ignore_index=True
    )
    if not len(data):
        raise BadInput(f"nothing can be compared with {target}: no pair of networks has it, ce and another method")
    if data["percent"].isna().all():
        raise BadInput("a relative improvement is not defined where no other method beats ce, and here none does")
    figure = draw_improvement(data.dropna(subset="percent"), target, source.options.order)
    pairs = data.dropna(subset="percent").groupby(["origin", "method"])["percent"].count()
    undefined = int(data["percent"].isna().sum())
    note(
        figure,
        "box: quartiles and median; dotted: mean; points: pairs of networks",
        f"{counts(pairs)} pairs a method",
        f"not defined where the other method does not beat ce ({undefined} of {len(data)})" if undefined else "",
        *provenance((), "", source.runs)[1:],
    )
    return Picture(figure, data)


def _improvements(part: pd.DataFrame, target: str) -> pd.DataFrame:
    """The relative improvement of the target for each pair of networks, method and origin of the numbers."""
    rows = []
    for origin, column in (("measured", "mean"), ("published", "published")):
        known = part.pivot_table(
            index=["teacher", "student"], columns="method", values=column, sort=False, dropna=False
        )
        if target not in known or "ce" not in known:
            continue
        for pair, line in known.iterrows():
            names = pair_text(map(str, pair)) if isinstance(pair, tuple) else str(pair)
            for method in known.columns:
                if method in (target, "ce") or not np.isfinite([line[method], line[target], line["ce"]]).all():
                    continue
                percent = relative_improvement(line[target], line[method], line["ce"])
                rows.append((origin, method, names, percent))
    return pd.DataFrame(rows, columns=["origin", "method", "pair", "percent"]).astype({"percent": float})


def draw_improvement(data: pd.DataFrame, target: str, order: Sequence[str] = ()) -> Figure:
    """Boxes with all points, a line for each method, from the columns origin, method and percent."""
    methods = ordered(data["method"], order)[::-1]
    origins = ordered(data["origin"], ("published", "measured"))
    figure, (axes,) = panels(1, height=0.5 + 0.2 * len(methods) * len(origins))
    step = 0.8 / len(origins)
    for number, origin in enumerate(origins):
        for at, method in enumerate(methods):
            part = data[(data["origin"] == origin) & (data["method"] == method)]["percent"].dropna()
            if not len(part):
                continue
            y, style = at + (len(origins) / 2 - number - 0.5) * step, method_style(method)
            axes.boxplot(
                part, positions=[y], orientation="horizontal", widths=0.7 * step, showfliers=False, manage_ticks=False,
                showmeans=True, meanline=True, medianprops={"color": style.colour, "linewidth": 1.2},
                meanprops={"color": style.colour, "linewidth": 0.8, "linestyle": "dotted"},
                boxprops={"linewidth": 0.6}, whiskerprops={"linewidth": 0.6}, capprops={"linewidth": 0.6},
            )  # fmt: skip
            marker, face = ("d", "white") if origin == "published" else (style.marker, style.face)
            axes.plot(part, [y] * len(part), marker, color=style.colour, mfc=face, ms=3, alpha=0.8)
    axes.axvline(0, color=colour("grey"), linewidth=0.8)
    if data["percent"].max() > 400:
        axes.set_xscale("symlog", linthresh=100)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(methods)), methods)
    axes.set(xlabel=f"relative improvement of {target} (%)", ylim=(-0.6, len(methods) - 0.4))
    axes.grid(False, axis="y")
    looks = {"published": published_handle("d"), "measured": point_handle(method_style("kd"))}
    legend(figure, [looks[origin] for origin in origins], origins)
    return figure
