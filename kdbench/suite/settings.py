"""What a protocol says: the recipe of all networks, the score rule, the trials."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictStr

from kdbench.suite.fields import DatasetName, NetworkName
from kdbench.suite.specs import HeadSpec, PositiveInt, PositiveNumber, Recipe


class Protocol(Recipe):
    """The recipe of the students, and how it differs for teachers, heads, networks and data sets.

    ``teacher`` and ``head`` override single values of the recipe for the teacher and for the new layers on a foundation
    backbone; ``head_simultaneous`` overrides ``head`` where those layers learn beside the student. ``lr_for`` names the
    networks that train at another rate; ``datasets`` overrides values for one data set. ``score`` is the epoch whose
    accuracy the paper reports.
    """

    title: StrictStr
    paper: StrictStr | None = None
    score: Literal["last", "best"]
    trials: PositiveInt = 1
    lr_for: dict[NetworkName, PositiveNumber] = {}
    teacher: dict[str, Any] = {}
    teacher_checkpoint: Literal["last", "best"] = "last"
    head: dict[str, Any] = {}
    head_simultaneous: dict[str, Any] = {}
    datasets: dict[DatasetName, dict[str, Any]] = {}
    methods: dict[str, Any] = Field(default_factory=dict)

    def recipe(self, network: str, dataset: str) -> Recipe:
        """How the protocol trains a student."""
        return self._recipe(network, dataset, {})

    def teacher_recipe(self, network: str, dataset: str) -> Recipe:
        """How the protocol trains a teacher from scratch. It keeps its own classifier.

        How often it is tested does not change it, unless its best epoch is the one that is kept.
        """
        tested = {"evaluate_every": 1} if self.teacher_checkpoint == "last" else {}
        return self._recipe(network, dataset, {"node_embedding": None, **tested, **self.teacher})

    def head_spec(self, dataset: str, *, simultaneous: bool) -> HeadSpec | None:
        """The new layers on a foundation backbone, or None where the protocol has none."""
        if self.node_embedding is None:
            return None
        changes = {**self.head, **(self.head_simultaneous if simultaneous else {}), "node_embedding": None}
        return HeadSpec(width=self.node_embedding, recipe=self._recipe("", dataset, changes))

    def _recipe(self, network: str, dataset: str, changes: dict[str, Any]) -> Recipe:
        own = self.model_dump(include=set(Recipe.model_fields))
        if network in self.lr_for:
            own["lr"] = self.lr_for[network]
        return Recipe(**{**own, **self.datasets.get(dataset, {}), **changes})
