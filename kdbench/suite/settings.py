"""What a protocol says: the recipe of all networks, the score rule, the trials."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, StrictStr

from kdbench.catalogue.datasets import datasets
from kdbench.suite.fields import DatasetName, NetworkName, PartName
from kdbench.suite.recipe import LearningRate
from kdbench.suite.specs import HeadSpec, PositiveInt, Pretraining, Recipe, SimCLR, View


Changes = dict[str, Any]
"""Values of a recipe that take the place of others."""


class Protocol(Recipe):
    """The recipe of the students, and how it differs for teachers, heads, networks and data sets.

    ``teacher`` and ``head`` override single values of the recipe for the teacher and for the new layers on a foundation
    backbone; ``head_simultaneous`` overrides ``head`` where those layers learn beside the student. ``pretraining``
    overrides the recipe where a teacher is first trained without labels, and ``simclr`` says how; ``fine_tune`` overrides
    ``teacher`` where it starts from such or from published weights. Under ``teacher_view: own`` the teacher sees its own
    augmented view of each image instead of the students'. ``parts`` overrides single values of the student's recipe for
    what a term, by name, trains on the finished teacher first; its ``lr_for`` names the students, by patterns such as
    `resnet*`, for which that happens at another rate. ``lr_for`` names the networks that train at another rate;
    ``datasets`` overrides values for one data set. ``score`` is the epoch whose accuracy the paper reports.
    """

    title: StrictStr
    paper: StrictStr | None = None
    score: Literal["last", "best"]
    trials: PositiveInt = 1
    lr_for: dict[NetworkName, LearningRate] = {}
    teacher: dict[str, Any] = {}
    teacher_checkpoint: Literal["last", "best"] = "last"
    head: dict[str, Any] = {}
    head_simultaneous: dict[str, Any] = {}
    pretraining: dict[str, Any] = {}
    simclr: SimCLR = SimCLR()
    fine_tune: dict[str, Any] = {}
    teacher_view: Literal["shared", "own"] = "shared"
    parts: dict[PartName, dict[str, Any]] = {}
    datasets: dict[DatasetName, dict[str, Any]] = {}
    methods: dict[str, Any] = Field(default_factory=dict)

    def most_padding(self, dataset: str) -> int:
        """The most by which any network's images of a data set are padded."""
        heads = (self.head_spec(dataset, simultaneous=simultaneous) for simultaneous in (False, True))
        others = (self.teacher_recipe("", dataset), self.fine_tune_recipe("", dataset), *(h.recipe for h in heads if h))
        return max(recipe.crop_padding for recipe in (self.recipe("", dataset), *others))

    def recipe(self, network: str, dataset: str) -> Recipe:
        """How the protocol trains a student."""
        return self._recipe(network, dataset, {})

    def teacher_recipe(self, network: str, dataset: str, view: Changes | None = None) -> Recipe:
        """How the protocol trains a teacher from scratch. It keeps its own classifier.

        How often it is tested does not change it, unless its best epoch is the one that is kept. ``view`` overrides how it
        sees the images.
        """
        return self._teacher_recipe(network, dataset, {}, view)

    def fine_tune_recipe(self, network: str, dataset: str, view: Changes | None = None) -> Recipe:
        """How the protocol trains a teacher on from weights that know something already."""
        return self._teacher_recipe(network, dataset, self.fine_tune, view)

    def pretraining_spec(self, network: str, dataset: str) -> Pretraining:
        """How the protocol trains a network without labels."""
        changes = {"node_embedding": None, "evaluate_every": 1, **self.pretraining, "crop_padding": 0}
        return Pretraining(recipe=self._recipe(network, dataset, changes), **self.simclr.model_dump())

    def head_spec(self, dataset: str, *, simultaneous: bool, view: Changes | None = None) -> HeadSpec | None:
        """The new layers on a foundation backbone, or None where the protocol has none."""
        if self.node_embedding is None:
            return None
        changes = {
            **self.head,
            **(self.head_simultaneous if simultaneous else {}),
            "node_embedding": None,
            **(view or {}),
        }
        return HeadSpec(width=self.node_embedding, recipe=self._recipe("", dataset, changes))

    def part_recipe(self, term: str, student: str, dataset: str, view: View | None = None) -> Recipe:
        """How the protocol trains what a term needs of a finished teacher, on images as the teacher sees them."""
        changes = dict(self.parts.get(term, {}))
        rates = changes.pop("lr_for", {})
        rate = next(({"lr": lr} for pattern, lr in rates.items() if fnmatchcase(student, pattern)), {})
        seen = view.model_dump() if view else {}
        return self._recipe(student, dataset, {"node_embedding": None, "evaluate_every": 1, **changes, **rate, **seen})

    def _teacher_recipe(self, network: str, dataset: str, changes: Changes, view: Changes | None) -> Recipe:
        tested = {"evaluate_every": 1} if self.teacher_checkpoint == "last" else {}
        changes = {"node_embedding": None, **tested, **self.teacher, **changes, **(view or {})}
        return self._recipe(network, dataset, changes)

    def _recipe(self, network: str, dataset: str, changes: Changes) -> Recipe:
        key = (network, dataset, repr(changes))
        if key not in self._recipes:
            own = self.model_dump(include=set(Recipe.model_fields))
            if network in self.lr_for:
                own["lr"] = self.lr_for[network]
            values = {**own, **self.datasets.get(dataset, {}), **changes}
            if dataset in datasets() and not datasets()[dataset].streamed:
                values |= {"crop_area": None, "crop_ratio": None}  # they say nothing of images in memory
            self._recipes[key] = Recipe(**values)
        return self._recipes[key]

    @cached_property
    def _recipes(self) -> dict[tuple[str, str, str], Recipe]:
        """What has been asked for: a grid asks for the same again and again."""
        return {}
