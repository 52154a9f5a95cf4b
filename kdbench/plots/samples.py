"""Pictures of single images: t-SNE of their embeddings, Grad-CAM; and how confident networks are of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.plots.data import Source, ordered, rows_of, tidy
from kdbench.plots.lines import origin, provenance
from kdbench.plots.style import (
    Picture,
    legend,
    line_handle,
    method_styles,
    note,
    panels,
    shades,
    title,
    trials,
)
from kdbench.plots.views import TEACHER, ask, finished, with_teachers
from kdbench.reporting.cells import summarise


SEED = 0


def tsne(source: Source) -> Picture:
    """Embeddings of test images of some classes in the plane: the teacher's and the students', by t-SNE with one seed."""
    most = source.options.most_images
    runs = finished(source, trials=False)
    asked = with_teachers(runs, source.report)
    settings = {"classes": list(source.options.classes), "seed": SEED} | ({"most": most} if most else {})
    answer = ask(source, "embeddings", asked, **settings)
    parts = [
        pd.DataFrame(points, columns=["x", "y"]).assign(
            panel=row.panel, method=row.method, image=answer["positions"], label=answer["classes"]
        )
        for row, points in zip(rows_of(asked), answer["points"], strict=True)
    ]
    data = pd.concat(parts, ignore_index=True)
    several = asked["panel"].nunique() > 1
    data = data.assign(panel=data["panel"] + "\n" + data["method"] if several else data["method"])
    figure = draw_tsne(data, source.options.classes)
    pair = "" if several else str(asked["panel"].iloc[0])
    note(
        figure,
        pair,
        f"t-SNE of the embeddings of {len(answer['positions']):,} test images",
        f"perplexity {answer['perplexity']:g}, seed {SEED}",
        f"trial {runs['trial'].min()} of each, n = 1 network",
        *origin(source.runs),
    )
    data = data.assign(panel=data["panel"].str.replace("\n", ": "))
    return Picture(figure, data[["panel", "method", "image", "label", "x", "y"]])


def draw_tsne(data: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Points by class, a panel for each network, from the columns panel, label, x and y."""
    names, classes = list(dict.fromkeys(data["panel"])), ordered(sorted(set(data["label"])), order)
    columns = min(4, len(names))
    figure, axes = panels(len(names), columns=columns, height=2.6 if columns < 3 else 6.6 / columns)
    styles = dict(zip(classes, shades(len(classes)), strict=True))
    for at, panel in zip(axes, names, strict=True):
        shown = data[data["panel"] == panel]
        for name, style in styles.items():
            part = shown[shown["label"] == name]
            at.plot(
                part["x"], part["y"], linestyle="", marker=style.marker, color=style.colour, ms=2.2, mew=0, alpha=0.8
            )
        at.set(xticks=[], yticks=[], box_aspect=1, aspect="equal", adjustable="datalim")
        at.grid(False)
        at.spines[:].set(visible=True, color="#cccccc")
        title(at, panel)
    handles = [
        Line2D([], [], linestyle="", marker=style.marker, color=style.colour, mew=0) for style in styles.values()
    ]
    legend(figure, handles, [name.replace("_", " ") for name in classes])
    return figure


def gradcam(source: Source) -> Picture:
    """Where teacher and students look: Grad-CAM of the true class over chosen test images, a row for each network."""
    runs = finished(source, trials=False)
    asked = with_teachers(runs, source.report)
    several = asked["panel"].nunique() > 1
    settings = {"classes": list(source.options.classes), "images": list(source.options.images)}
    answer = ask(source, "gradcam", asked, **settings)
    methods = list(asked["panel"] + "\n" + asked["method"] if several else asked["method"])
    figure = draw_gradcam(answer, methods)
    note(
        figure,
        "" if several else str(asked["panel"].iloc[0]),
        "heat: Grad-CAM of the true class on the last feature map, each image's own scale; red: another class is predicted",
        f"trial {runs['trial'].min()} of each, n = 1 network",
        *origin(source.runs),
    )
    rows = [
        (method.replace("\n", ": "), position, label, predicted, y, x, value)
        for method, network in zip(methods, answer["networks"], strict=True)
        for position, label, predicted, heat in zip(
            answer["positions"], answer["labels"], network["predicted"], network["maps"], strict=True
        )
        for y, line in enumerate(heat)
        for x, value in enumerate(line)
    ]
    return Picture(
        figure, pd.DataFrame(rows, columns=["method", "image", "label", "predicted", "row", "column", "heat"])
    )


def draw_gradcam(answer: dict[str, Any], methods: Sequence[str]) -> Figure:
    """Images in columns; the first row shows them, the others each network's heat over them in grey."""
    images = [np.array(image, dtype=np.uint8) for image in answer["images"]]
    count = len(images)
    side = (7.0 - 0.6) / max(count, 5)
    figure, axes = panels((1 + len(methods)) * count, columns=count, height=side, wide=True, most=400)
    grid = np.array(axes).reshape(1 + len(methods), count)
    for at, image, label in zip(grid[0], images, answer["labels"], strict=True):
        at.imshow(image)
        at.set_title(label.replace("_", " "), fontsize=6)
    for line, method, network in zip(grid[1:], methods, answer["networks"], strict=True):
        each = zip(line, images, network["maps"], network["predicted"], answer["labels"], strict=True)
        for at, image, heat, predicted, label in each:
            _heat(at, image, np.array(heat))
            if predicted != label:
                at.set_xlabel(predicted.replace("_", " "), fontsize=5, color="#d00000", labelpad=1)
        text = "\n".join(textwrap.fill(part, 14, break_long_words=False) for part in method.splitlines())
        _name_row(line[0], text)
    for at in axes:
        at.set(xticks=[], yticks=[])
        at.grid(False)
        at.spines[:].set_visible(False)
    _name_row(grid[0][0], "image")
    return figure


def _name_row(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=6 if text.count("\n") < 3 else 4.5, rotation=0, ha="right", va="center")


def _heat(axes: Axes, image: Any, heat: Any) -> None:
    height, width = image.shape[:2]
    axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.55, extent=extent, interpolation="bilinear")


def calibration(source: Source) -> Picture:
    """Accuracy of the answers by their confidence, teacher and students; on the diagonal both are the same."""
    asked = with_teachers(finished(source, trials=True), source.report)
    answer = ask(source, "predictions", asked)
    rows, errors = [], []
    for row, network in zip(rows_of(asked), answer["networks"], strict=True):
        errors.append((row.panel, row.method, row.trial, 100 * network["ece"], ""))
        bins = zip(network["images"], network["confidence"], network["right"], strict=True)
        rows += [
            (row.panel, row.method, number, row.trial, 100 * right / images, "", 100 * confidence / images, images)
            for number, (images, confidence, right) in enumerate(bins, 1)
            if images >= FEWEST
        ]
    by = ["panel", "method", "bin"]
    frame = pd.DataFrame(rows, columns=[*by, "trial", "value", "reason", "confidence", "images"])
    found = frame.groupby(by, sort=False)[["confidence", "images"]].mean()
    data = summarise(frame, by).join(found).reset_index().sort_values("bin", kind="stable")
    ece = summarise(pd.DataFrame(errors, columns=[*by[:2], "trial", "value", "reason"]), by[:2]).reset_index()
    figure = draw_calibration(data, ece, source.options.order)
    note(
        figure,
        f"15 bins of confidence, those with at least {FEWEST} images; ECE in points, mean over {trials(ece['n'])}",
        *provenance(data["n"], "bars", source.runs),
    )
    data = data.merge(ece[["panel", "method", "mean", "sd"]].rename(columns={"mean": "ece", "sd": "ece_sd"}), on=by[:2])
    return Picture(figure, tidy(data, [*by, "confidence", "mean", "sd", "n", "images", "ece", "ece_sd"]))


FEWEST = 5
"""Images of a bin whose accuracy is drawn."""


def draw_calibration(data: pd.DataFrame, ece: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Accuracy over confidence with error bars, from the columns panel, method, confidence, mean and sd."""
    names, styles = list(dict.fromkeys(data["panel"])), method_styles(ordered(ece["method"], (TEACHER, *order)))
    figure, axes = panels(len(names))
    for at, panel in zip(axes, names, strict=True):
        at.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1, zorder=1)
        for method, style in styles.items():
            part = data[(data["panel"] == panel) & (data["method"] == method)]
            at.errorbar(
                part["confidence"], part["mean"], part["sd"].fillna(0), color=style.colour, linestyle=style.line,
                marker=style.marker, mfc=style.face, ms=3, elinewidth=0.6, capsize=1,
            )  # fmt: skip
        shown = ece[ece["panel"] == panel].set_index("method")["mean"]
        errors = [f"ECE {method} {shown[method]:.1f}" for method in styles if method in shown.index]
        blank = [Line2D([], [], linestyle="")] * len(errors)
        at.legend(blank, errors, loc="best", fontsize=5, handlelength=0, handletextpad=0, labelspacing=0.2)
        at.set(xlabel="confidence (%)", ylabel="accuracy (%)", ylim=(-3, 103))
        low = data.loc[data["panel"] == panel, "confidence"].min()
        at.set_xlim(min(45.0, low - 3), 102)
        title(at, panel)
    legend(figure, [line_handle(style) for style in styles.values()], list(styles))
    return figure
