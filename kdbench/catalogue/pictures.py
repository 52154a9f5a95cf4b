"""The kinds of pictures, and the papers' figures that carry results (figures.yaml): all but how they are drawn."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field

from kdbench.catalogue.text import normalise, unknown
from kdbench.errors import BadInput


class PictureKind(NamedTuple):
    """A kind of picture: what it shows, the options that it takes, and what it needs."""

    summary: str
    options: frozenset[str] = frozenset()
    published: bool = False
    """Whether published numbers alone make a picture."""
    networks: bool = False
    """Whether it needs the weights of finished networks."""


def _kind(summary: str, *options: str, published: bool = False, networks: bool = False) -> PictureKind:
    return PictureKind(summary, frozenset(options), published, networks)


KINDS: dict[str, PictureKind] = {
    "curves": _kind("what runs record, by epoch", "metrics", published=True),
    "sweep": _kind("accuracy over a setting: a weight, a temperature, a share of labels", "over", published=True),
    "bars": _kind("accuracies side by side; of linear probes with --metric probe", "metrics", "lines", published=True),
    "layer-pairs": _kind("single pairs of layers, and other methods as lines", published=True),
    "gap": _kind("the share of the gap to the teacher that a method closes"),
    "improvement": _kind("the relative improvement of one method over the others", "target", published=True),
    "cost": _kind("accuracy against the cost of training, with the Pareto front", "metrics"),
    "scatter": _kind("measured against published numbers"),
    "cd": _kind("mean ranks with the critical difference"),
    "attention": _kind("SemCKD's attention between layers"),
    "class-accuracy": _kind("accuracy by class, of teacher and students", networks=True),
    "correlation": _kind("difference of the class correlations of student and teacher", networks=True),
    "similarity": _kind("CKA of the layers of student and teacher", networks=True),
    "confusion": _kind("the answers of teacher and students by true class", networks=True),
    "calibration": _kind("accuracy by confidence", networks=True),
    "tsne": _kind("embeddings of test images in the plane", "classes", networks=True),
    "gradcam": _kind("where teacher and students look", "classes", "images", networks=True),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stated(_Part):
    """A number that a paper's text gives for a method; an empty teacher or student stands for any."""

    method: str
    teacher: str = ""
    student: str = ""
    value: float


class PaperFigure(_Part):
    """A figure of a paper: the kind of picture, the suites that make its runs, and the part of them that it shows."""

    title: str
    caption: str
    kind: str
    suites: tuple[str, ...]
    only: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    published: tuple[Stated, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict, alias="with")
    note: str = ""


@cache
def paper_figures() -> dict[str, PaperFigure]:
    """The content of figures.yaml, by name."""
    text = files("kdbench.catalogue").joinpath("figures.yaml").read_text(encoding="utf-8")
    return {name: PaperFigure.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def paper_figure(name: str) -> PaperFigure:
    """A figure by its name, such as ``sskd-fig-3a``. Raises BadInput with the nearest name."""
    found = {normalise(known): known for known in paper_figures()}.get(normalise(name))
    if found is None:
        raise BadInput(unknown("figure", name, paper_figures(), "figures"))
    return paper_figures()[found]
