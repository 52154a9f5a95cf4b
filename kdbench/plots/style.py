"""How pictures look: sizes, styles as matplotlib takes them, panels, legends, notes and files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdbench.catalogue import palette
from kdbench.errors import BadInput
from kdbench.files import write_atomically, write_text


FORMATS = ("png", "svg", "pdf")
MOST_PANELS = 40


class Style(NamedTuple):
    """The colour, line, marker and hatch of a method, or of another thing, as matplotlib takes them."""

    colour: str
    line: Any
    marker: str
    hatch: str

    @property
    def face(self) -> str:
        """What fills the marker: nothing where the line is not solid, a second thing to tell methods apart by."""
        return self.colour if self.line == "solid" else "white"


_HATCHES = {"solid": "", "dashed": "/////", "dotted": ".....", "dashdot": "xxxxx", "dashdotdot": "\\\\\\\\\\"}
"""What fills bars, by line."""


@cache
def sheet() -> dict[str, Any]:
    """The content of style.yaml."""
    text = files("kdbench.plots").joinpath("style.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def colour(name: str) -> str:
    """A colour by name, for a white ground."""
    return palette.colours()[name][0]


def _drawn(shade: str, line: str, marker: str) -> Style:
    lengths = palette.dashes(line)
    return Style(colour(shade), (0, tuple(lengths)) if lengths else "solid", marker, _HATCHES[line])


def method_style(name: str) -> Style:
    """The style of a method that is drawn by itself, or named beside its marks."""
    return _drawn(*palette.method_style(name))


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """The styles of methods that a legend tells apart, as the report's page draws them."""
    return {name: _drawn(*style) for name, style in palette.method_styles(methods).items()}


def shades(count: int) -> list[Style]:
    """Styles for so many things that are no methods, such as classes or layers."""
    things, lines = sheet()["things"], list(_HATCHES)
    return [
        _drawn(things[at % len(things)], lines[at // len(things) % len(lines)], "osD^vPXph*"[at % 10])
        for at in range(count)
    ]


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and its data: one row per mark."""

    figure: Figure
    data: pd.DataFrame


def styled() -> Any:
    """A context with the sheet's settings, for drawing and writing."""
    return mpl.rc_context(sheet()["rc"])


def panels(
    count: int,
    *,
    columns: int | None = None,
    height: float = 2.0,
    wide: bool | None = None,
    most: int = MOST_PANELS,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, a column wide where there is one, else as wide as the page, up to four in a row.

    height: of a row, in inches. Raises BadInput for too many panels.
    """
    if count > most:
        raise BadInput(f"{count} panels are more than a page takes ({most}): choose some with --only")
    across = columns or (count if count < 4 else 2 if count == 4 else 3 if count in (5, 6, 9) else 4)
    rows = -(-count // across)
    width = sheet()["width"]["page" if (across > 1 if wide is None else wide) else "column"]
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, across, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def title(axes: Axes, text: str) -> None:
    """A panel's title, broken where the panel ends."""
    spec = axes.get_subplotspec()
    columns = spec.get_gridspec().ncols if spec else 1
    figure = axes.get_figure(root=True)
    inches = float(figure.get_size_inches()[0]) / columns if figure else 3.0
    width = int(inches * 15)
    axes.set_title("\n".join(textwrap.fill(line, width, break_long_words=False) for line in text.splitlines()))


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend above the panels, never on the data."""
    if not labels:
        return
    inches = float(figure.get_size_inches()[0])
    room = inches * 72 / (3.7 * max(map(len, labels)) + 36)
    columns = max(1, min(len(labels), int(room)))
    rows = -(-len(labels) // columns)
    columns = -(-len(labels) // rows)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    figure.set_size_inches(inches, float(figure.get_size_inches()[1]) + 0.13 * rows)


def note(figure: Figure, *parts: str) -> None:
    """What the marks are, over how many trials and how trained, in small print below the panels."""
    inches = float(figure.get_size_inches()[0])
    lines = textwrap.wrap("; ".join(part for part in parts if part) + ".", int(inches * 24))
    figure.supxlabel("\n".join(lines), fontsize=5.5, color="#555555", x=0.01, ha="left")
    figure.set_size_inches(inches, float(figure.get_size_inches()[1]) + _NOTE_LINE * len(lines))


_NOTE_LINE = 0.09
"""The height of a note's line in inches."""


def take_note(figure: Figure) -> str:
    """Remove the note below the panels, and return it."""
    text = figure.get_supxlabel()
    figure.supxlabel("")
    width, height = map(float, figure.get_size_inches())
    figure.set_size_inches(width, height - _NOTE_LINE * len(text.splitlines()))
    return text.replace("\n", " ")


def line_handle(style: Style, *, marker: bool = True) -> Line2D:
    """A method's entry in a legend of lines."""
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, marker=style.marker if marker else "", mfc=style.face
    )


def point_handle(style: Style) -> Line2D:
    """A method's entry in a legend of points."""
    return Line2D([], [], color=style.colour, linestyle="", marker=style.marker, mfc=style.face)


def bar_handle(style: Style) -> Patch:
    """A method's entry in a legend of bars."""
    return Patch(facecolor=style.colour, edgecolor="white", hatch=style.hatch)


_PUBLISHED: dict[str, Any] = {"linestyle": "", "mfc": "none", "mew": 0.8, "ms": 7, "zorder": 6}


def published_handle(marker: str = "o") -> Line2D:
    """The legend's entry of published numbers: large open marks, small diamonds on bars and boxes."""
    return Line2D([], [], **{**_PUBLISHED, "marker": marker, "color": "black", "ms": 7 if marker == "o" else 4.5})


def mark_published(axes: Axes, x: Any, y: Any, style: Style, **settings: Any) -> None:
    """Published numbers as the method's marker, large and open."""
    axes.plot(x, y, **{**_PUBLISHED, "marker": style.marker, "color": style.colour, **settings})


def mark_published_line(axes: Axes, value: float, style: Style) -> None:
    """A published number as a mark at the right end of a panel."""
    mark_published(axes, [1], [value], style, transform=axes.get_yaxis_transform(), clip_on=False)


def counts(numbers: Iterable[float], word: str = "n") -> str:
    """``n = 3``, or ``n = 1 to 3``; "" where nothing is measured."""
    found = sorted({int(number) for number in numbers if number == number and number > 0})
    if not found:
        return ""
    text = f"{word} = {found[0]}" if len(found) == 1 else f"{word} = {found[0]} to {found[-1]}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def spread(n: Iterable[float], mark: str) -> str:
    """``mean ± sd (bars), n = 3 trials``: what the marks show, and over how many trials."""
    found = [number for number in n if number == number and number > 0]
    if not found:
        return "no run is finished: published numbers alone"
    shown = f"mean ± sd ({mark})" if max(found) > 1 else "single trials, without spread"
    return f"{shown}, {trials(found)}"


def trials(n: Iterable[float]) -> str:
    """``n = 3 trials``."""
    found = list(n)
    return f"{counts(found)} {'trial' if max(found, default=0) == 1 else 'trials'}"


def write(picture: Picture, file: Path) -> list[Path]:
    """Write the picture, and its data as CSV beside it. Equal pictures are equal byte by byte.

    Raises BadInput for another format than PNG, SVG and PDF, and for a file that cannot be written.
    """
    form = check_format(file)
    table = file.with_suffix(".csv")
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[form]
    try:
        with styled():
            write_atomically(file, lambda stream: picture.figure.savefig(stream, format=form, metadata=metadata))
        write_text(table, picture.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    except OSError as error:
        raise BadInput(f"--output {file}: cannot be written: {error.strerror or error}") from None
    return [file, table]


def check_format(file: Path) -> str:
    """The format that a file's ending says. Raises BadInput for another."""
    form = file.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise BadInput(f"--output {file}: a picture is {', '.join(f'.{each}' for each in FORMATS)}: end the name so")
    return form


def limits(values: Iterable[float], *, margin: float = 0.08) -> tuple[float, float] | None:
    """The range of values with a margin; None where there are none."""
    found = np.array([value for value in values if np.isfinite(value)], dtype=float)
    if not len(found):
        return None
    low, high = float(found.min()), float(found.max())
    room = margin * (high - low) or 1.0
    return low - room, high + room
