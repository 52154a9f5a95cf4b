"""Drawing pictures by kind."""

from __future__ import annotations

from collections.abc import Callable

from kdbench.catalogue.pictures import KINDS
from kdbench.errors import BadInput
from kdbench.plots import bars, comparisons, heatmaps, lines, samples
from kdbench.plots.data import Source, cells
from kdbench.plots.style import Picture, styled


DRAW: dict[str, Callable[[Source], Picture]] = {
    "curves": lines.curves,
    "sweep": lines.sweep,
    "bars": bars.bars,
    "layer-pairs": bars.layer_pairs,
    "gap": bars.gap,
    "improvement": bars.improvement,
    "cost": comparisons.cost,
    "scatter": comparisons.scatter,
    "cd": comparisons.cd,
    "attention": heatmaps.attention,
    "class-accuracy": heatmaps.class_accuracy,
    "correlation": heatmaps.correlation,
    "similarity": heatmaps.similarity,
    "confusion": heatmaps.confusion,
    "calibration": samples.calibration,
    "tsne": samples.tsne,
    "gradcam": samples.gradcam,
}


def draw(kind: str, source: Source) -> Picture:
    """Draw a picture. Raises BadInput where the results have nothing for it, with the command that trains what is missing."""
    begun = source.runs["status"].isin(["done", "started"]).any()
    if not begun and not (KINDS[kind].published and cells(source)["published"].notna().any()):
        raise BadInput(
            f"no run of {', '.join(suite.name for suite in source.report.suites)} is finished. {source.train}"
        )
    with styled():
        return DRAW[kind](source)
