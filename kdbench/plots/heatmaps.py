"""Heat maps: attention between layers, accuracy by class, class correlations, similarity of layers, and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdbench.errors import BadInput
from kdbench.plots.data import Source, attention_maps, rows_of, tidy
from kdbench.plots.lines import origin, provenance
from kdbench.plots.style import Picture, note, panels, title, trials
from kdbench.plots.views import TEACHER, ask, finished, with_teachers
from kdbench.reporting.cells import summarise


Matrix = NDArray[np.float64]
MOST_ANNOTATED = 20
"""Rows of a heat map whose values are printed; of all heat maps side by side, if values have decimals."""
MOST_NAMED = 25
"""Rows of a heat map whose names are printed."""


def attention(source: Source) -> Picture:
    """SemCKD's mean attention of each student layer (rows) to the teacher's layers in the last epoch."""
    data = attention_maps(source.report)
    if not len(data):
        raise BadInput("no run of these suites has recorded attention: semckd does")
    maps = {}
    for (panel, method), part in data.groupby(["panel", "method"], sort=False):
        table = part.pivot_table(index="row", columns="column", values="mean", sort=False)
        maps[f"{panel}\n{method}"] = (table.to_numpy(dtype=float), list(table.index), list(table.columns))
    figure = draw_maps(maps, "attention", low=0.0, high=1.0)
    _name_axes(figure, "student's layer", "teacher's layer")
    note(figure, "mean over the images of the last epoch", *provenance(data["n"], "in the CSV file", source.runs))
    return Picture(figure, data.drop(columns=["values", "planned", "note"]))


def class_accuracy(source: Source) -> Picture:
    """Accuracy by class (columns), of the teacher and each method's students (rows), mean over trials."""
    asked = with_teachers(finished(source, trials=True), source.report)
    answer = ask(source, "predictions", asked)
    counts = [np.array(network["confusion"], dtype=float) for network in answer["networks"]]
    rows = [
        (row.panel, row.method, name, row.trial, 100 * right / max(1.0, images), "")
        for row, count in zip(rows_of(asked), counts, strict=True)
        for name, right, images in zip(answer["classes"], count.diagonal(), count.sum(1), strict=True)
    ]
    by = ["panel", "method", "class"]
    data = summarise(pd.DataFrame(rows, columns=[*by, "trial", "value", "reason"]), by).reset_index()
    figure = draw_classes(data)
    note(
        figure,
        f"{int(counts[0].sum()):,} test images; classes from the first row's best to its worst",
        f"mean over {trials(data['n'])}",
        *origin(source.runs),
    )
    return Picture(figure, tidy(data, [*by, "mean", "sd", "n", "values"]))


def draw_classes(data: pd.DataFrame) -> Figure:
    """A map for each panel, from the columns panel, method, class and mean; its first row orders the classes."""
    names = list(dict.fromkeys(data["panel"]))
    rows = data.groupby("panel")["method"].nunique().max()
    figure, axes = panels(len(names), columns=min(2, len(names)), height=0.2 * rows + 0.7, wide=True)
    low = float(data["mean"].min())
    for at, panel in zip(axes, names, strict=True):
        table = data[data["panel"] == panel].pivot_table(index="method", columns="class", values="mean", sort=False)
        table = table.sort_values(table.index[0], axis=1, ascending=False, kind="stable")
        matrix = table.to_numpy(dtype=float)
        image = at.imshow(matrix, cmap="cividis", vmin=low, vmax=100, aspect="auto", interpolation="nearest")
        title(at, panel)
        _ticks(at, list(table.index), list(table.columns))
        if matrix.shape[1] * min(2, len(names)) <= MOST_ANNOTATED:
            _annotate(at, matrix, low, 100, size=6.0 if len(names) == 1 else 5.0)
    figure.colorbar(image, ax=axes, label="accuracy (%)", pad=0.01, aspect=20)
    return figure


def correlation(source: Source) -> Picture:
    """The absolute difference between the class correlations of student's and teacher's classifiers, mean over trials."""
    runs = finished(source, trials=True)
    asked = with_teachers(runs, source.report)
    answer = ask(source, "correlations", asked)
    matrices = [np.array(each) for each in answer["matrices"]]
    found = asked.assign(matrix=pd.Series(matrices, index=asked.index, dtype=object))
    names, maps, n = answer["classes"], {}, []
    for panel, part in found.groupby("panel", sort=False):
        teacher = part.loc[part["method"] == TEACHER, "matrix"].iloc[0]
        for method, repeated in part[part["method"] != TEACHER].groupby("method", sort=False):
            gaps = np.stack([np.abs(each - teacher) for each in repeated["matrix"]])
            spread = f" ± {gaps.mean((1, 2)).std(ddof=1):.3f}" if len(gaps) > 1 else ""
            maps[f"{panel}\n{method}, mean {gaps.mean():.3f}{spread}"] = (gaps.mean(0), names, names)
            n.append(len(gaps))
    figure = draw_maps(maps, "|difference of correlations|", low=0.0)
    note(
        figure,
        "cosines between the classes' weights in the classifier: |student - teacher|",
        f"mean ± sd over {trials(n)}",
        *origin(source.runs),
    )
    return Picture(figure, _long(maps, "difference"))


def similarity(source: Source) -> Picture:
    """Linear CKA of each student layer (rows) and each teacher layer (columns) on test images, mean over trials."""
    runs = finished(source, trials=True)
    teachers = {panel: part.iloc[0] for panel, part in with_teachers(runs, source.report).groupby("panel", sort=False)}
    pairs = [pd.DataFrame([row, teachers[row["panel"]]]) for _, row in runs.iterrows()]
    matrices = [np.array(each) for each in ask(source, "layers", pd.concat(pairs))]
    maps, n = {}, []
    for (panel, method), part in runs.assign(at=range(len(runs))).groupby(["panel", "method"], sort=False):
        mean = np.mean([matrices[at] for at in part["at"]], axis=0)
        rows, columns = ([f"{side}{at + 1}" for at in range(size)] for side, size in zip("ST", mean.shape, strict=True))
        maps[f"{panel}\n{method}"] = (mean, rows, columns)
        n.append(len(part))
    figure = draw_maps(maps, "linear CKA", low=0.0, high=1.0)
    _name_axes(figure, "student's layer", "teacher's layer")
    note(
        figure,
        "linear CKA of feature maps on test images, 0: unlike, 1: alike but for rotation and scale",
        f"mean over {trials(n)}",
        *origin(source.runs),
    )
    return Picture(figure, _long(maps, "cka"))


def confusion(source: Source) -> Picture:
    """What teacher and students answer for each true class (rows), in %, mean over trials."""
    asked = with_teachers(finished(source, trials=True), source.report)
    answer = ask(source, "predictions", asked)
    matrices = [np.array(each["confusion"], dtype=float) for each in answer["networks"]]
    asked = asked.assign(matrix=[100 * each / each.sum(1, keepdims=True).clip(1) for each in matrices])
    names, maps, n = answer["classes"], {}, []
    for (panel, method), part in asked.groupby(["panel", "method"], sort=False):
        maps[f"{panel}\n{method}"] = (np.mean(list(part["matrix"]), axis=0), names, names)
        n.append(len(part))
    figure = draw_maps(maps, "share of a true class's images (%)", low=0.0, high=100.0)
    _name_axes(figure, "true class", "answer")
    images = int(matrices[0].sum())
    note(figure, f"{images:,} test images; mean over {trials(n)}", *origin(source.runs))
    return Picture(figure, _long(maps, "percent"))


def _long(maps: Mapping[str, tuple[Matrix, Sequence[str], Sequence[str]]], value: str) -> pd.DataFrame:
    rows = [
        (name.replace("\n", ": "), row, column, matrix[r, c])
        for name, (matrix, rows, columns) in maps.items()
        for (r, row), (c, column) in product(enumerate(rows), enumerate(columns))
    ]
    return pd.DataFrame(rows, columns=["panel", "row", "column", value])


def _name_axes(figure: Figure, rows: str, columns: str) -> None:
    for axes in figure.axes[:-1]:
        axes.set(ylabel=rows, xlabel=columns)


def draw_maps(
    maps: Mapping[str, tuple[Matrix, Sequence[str], Sequence[str]]],
    label: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """Matrices with the names of their rows and columns, in one scale of colours; the last axes are the scale's."""
    columns = min(4, len(maps))
    figure, axes = panels(len(maps), columns=columns, height=2.7 if columns < 3 else 6.4 / columns + 0.25)
    values = np.concatenate([matrix.ravel() for matrix, _, _ in maps.values()])
    low, high = (float(values.min()) if low is None else low), (float(values.max()) if high is None else high)
    image = None
    for at, (name, (matrix, rows, labels)) in zip(axes, maps.items(), strict=True):
        image = at.imshow(matrix, cmap="cividis", vmin=low, vmax=high or 1.0, aspect="equal", interpolation="nearest")
        title(at, name)
        _ticks(at, rows, labels)
        if max(matrix.shape) * (columns if high <= 1 else 1) <= MOST_ANNOTATED:
            _annotate(at, matrix, low, high)
    assert image is not None
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, pad=0.01, aspect=30)
    return figure


def _ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    long = max(map(len, columns)) > 2
    for side, names, turned in ((axes.set_xticks, columns, 90 if long else 0), (axes.set_yticks, rows, 0)):
        if len(names) > MOST_NAMED:
            side([])
        else:
            side(range(len(names)), names, rotation=turned)


def _annotate(axes: Axes, matrix: Matrix, low: float, high: float, size: float | None = None) -> None:
    whole = high > 2
    size = size or (5.5 if max(matrix.shape) <= 6 else 4.0)
    for (r, c), value in np.ndenumerate(matrix):
        text = f"{value:.0f}" if whole else f"{value:.2f}"
        shade = "white" if value < (low + high) / 2 else "black"
        if not (whole and text == "0"):
            axes.text(c, r, text, ha="center", va="center", fontsize=size, color=shade)
