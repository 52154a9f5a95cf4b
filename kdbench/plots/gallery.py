"""The pictures of a report's page: those that its results are enough for, and views of each pair of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pandas as pd

from kdbench.catalogue.pictures import KINDS
from kdbench.errors import BadInput, KdbenchError
from kdbench.plots.data import PlotOptions, Request, Source, titled, varying_settings
from kdbench.plots.kinds import draw
from kdbench.plots.style import Picture, styled, take_note
from kdbench.reporting.options import PagePicture
from kdbench.reporting.report import Report


VIEWS = ("class-accuracy", "attention", "similarity", "tsne")
"""The kinds that are drawn for each pair of networks by itself."""
MOST_PAIRS = 12
"""Pairs whose views are drawn, so that a page stays small."""
MOST_POINTS = 300
"""Images of a t-SNE, which takes a second for each network then."""
LONGEST_TABLE = 200
"""Rows of a picture's numbers that the page has as a table, too."""
_SHOWN, _STORED = 120, 180
"""Pixels per inch on the page, and in the file, for screens that are finer."""


def gallery(report: Report, ask: Request | None, tell: Callable[[str], None]) -> tuple[PagePicture, ...]:
    """One picture of each kind that the results are enough for, then the views of each pair of networks.

    ``ask`` is asked for the networks of finished runs; without it, what needs them is left out. ``tell`` is told, once, of
    each reason why it does not answer.
    """
    source = Source(report, ask=_asking(ask, tell)) if ask else Source(report)
    kinds = [name for name, kind in KINDS.items() if name not in VIEWS and not kind.networks]
    views = [name for name in VIEWS if ask or not KINDS[name].networks]
    found = [shown for name in kinds for shown in _drawn(name, source)]
    runs = titled(report.runs)
    pairs = list(dict.fromkeys(runs.loc[runs["status"] == "done", "panel"]))
    for pair in pairs[:MOST_PAIRS]:
        part = replace(source, report=replace(report, runs=report.runs[runs["panel"] == pair]))
        found += [shown for name in views for shown in _drawn(name, part, pair)]
    if len(pairs) > MOST_PAIRS:
        tell(f"views of the first {MOST_PAIRS} of {len(pairs)} pairs are shown: choose others with --only")
    return tuple(found)


def _asking(ask: Request, tell: Callable[[str], None]) -> Request:
    told: set[str] = set()

    def asked(request: dict[str, Any]) -> Any:
        try:
            return ask(request)
        except KdbenchError as error:
            if str(error) not in told:
                told.add(str(error))
                tell(f"a page without some views of networks: {error}")
            raise BadInput(str(error)) from None

    return asked


def _drawn(kind: str, source: Source, pair: str = "") -> Iterator[PagePicture]:
    """The pictures of a kind: none where the results have nothing for it, of `sweep` one for each setting that varies."""
    settings: list[str | None] = [*varying_settings(source)] if kind == "sweep" else [None]
    for over in settings:
        try:
            picture = draw(kind, replace(source, options=PlotOptions(over=over, most_images=MOST_POINTS)))
        except BadInput:
            continue
        yield _on_page(picture, kind, pair)


def _on_page(picture: Picture, kind: str, pair: str) -> PagePicture:
    """A picture whose note is the page's caption, and whose numbers are a table there unless they are too many."""
    figure, content = picture.figure, BytesIO()
    caption = take_note(figure)
    with styled():
        figure.savefig(content, format="png", dpi=_STORED, metadata={"Software": None})
    width = round(float(figure.get_size_inches()[0]) * _SHOWN)
    data = picture.data
    rows = [tuple(map(str, data.columns)), *(tuple(map(_text, row)) for row in data.itertuples(index=False))]
    numbers = tuple(rows) if len(data) <= LONGEST_TABLE else ()
    summary = KINDS[kind].summary.partition(";")[0]
    methods = tuple(dict.fromkeys(data["method"])) if "method" in data else ()
    return PagePicture(
        kind, pair, summary[0].upper() + summary[1:], methods, caption, content.getvalue(), width, numbers
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)
