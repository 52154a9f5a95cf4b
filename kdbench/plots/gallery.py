"""The pictures of a report that need no network, for its page."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from kdbench.catalogue.pictures import KINDS
from kdbench.errors import BadInput
from kdbench.plots.data import PlotOptions, Source
from kdbench.plots.kinds import draw
from kdbench.plots.style import styled
from kdbench.reporting.options import PagePicture
from kdbench.reporting.report import Report


_SHOWN, _STORED = 120, 180
"""Pixels per inch on the page, and in the file, for screens that are finer."""


def _no_network(request: dict[str, Any]) -> Any:
    raise BadInput("a page asks no network")


def gallery(report: Report) -> tuple[PagePicture, ...]:
    """One picture of each kind that the report's results are enough for, and that needs no network."""
    source = Source(report, PlotOptions(), published={}, ask=_no_network, train="", note="")
    found = []
    for name, kind in KINDS.items():
        if kind.networks:
            continue
        try:
            figure = draw(name, source).figure
        except BadInput:
            continue  # the results have nothing for it, or it needs an option
        content = BytesIO()
        with styled():
            figure.savefig(content, format="png", dpi=_STORED, metadata={"Software": None})
        width = round(float(figure.get_size_inches()[0]) * _SHOWN)
        found.append(PagePicture(name, kind.summary.partition(";")[0], content.getvalue(), width))
    return tuple(found)
