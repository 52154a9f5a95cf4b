"""Specifications of runs and teachers: every setting of a suite that can change a result, and nothing else.

A teacher is made in stages, each with a record of its own: a union that ``kind`` tells apart.

Imported, SelfSupervised, Supervised   from fresh weights, or from weights that were trained elsewhere
FineTuned                              a pre-trained network (one of the first two) trained further on labels
StudentOf                              the student of another run; its record is that run's
NewLayers                              new layers on a frozen network
Adapter                                what a term trains on a finished teacher before any student
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt, TypeAdapter, model_validator

from kdbench.suite.components import HeadSpec as HeadSpec
from kdbench.suite.components import Name, Precision, Sha256, TeacherInference, Variant
from kdbench.suite.components import Network as Network
from kdbench.suite.components import NetworkSpec as NetworkSpec
from kdbench.suite.components import Preprocessing as Preprocessing
from kdbench.suite.components import Pretraining as Pretraining
from kdbench.suite.components import Recipe as Recipe
from kdbench.suite.components import SimCLR as SimCLR
from kdbench.suite.components import WeightedTerm as WeightedTerm
from kdbench.suite.components import Weights as Weights
from kdbench.suite.components import digest as digest
from kdbench.suite.data_specs import DatasetSpec as DatasetSpec
from kdbench.suite.data_specs import Scenario as Scenario


Strategy = Literal["pretrained", "sequential", "simultaneous"]
Checkpoint = Literal["last", "best"]
"""The epoch whose weights are kept: the last, or the best by test accuracy."""


def code_of(network: Network) -> dict[str, str]:
    """The hash of a network's source by the name of its builder; empty for what a name stands for."""
    if isinstance(network, str) or network.source_sha256 is None:
        return {}
    return {network.build: network.source_sha256}


class _Stage(Variant):
    """One stage in the making of a teacher."""

    @property
    def has_classifier(self) -> bool:
        """Whether it gives class scores, not only an embedding."""
        return True

    @property
    def source_run(self) -> RunSpec | None:
        """The run whose student and record it is; None if it has a teacher's record."""
        return None

    @property
    def plugins(self) -> dict[str, str]:
        """The source hashes of all terms and networks in it that are not bundled, by name."""
        return code_of(self.network)  # type: ignore[attr-defined]


class Imported(_Stage):
    """Weights that were trained elsewhere, used unchanged. ``dataset`` is None for an encoder without classifier."""

    kind: Literal["imported"] = "imported"
    network: Network
    weights: Weights
    dataset: DatasetSpec | None = None
    parent: ClassVar[None] = None
    recipe: ClassVar[None] = None
    checkpoint: ClassVar[Checkpoint] = "last"

    @property
    def has_classifier(self) -> bool:
        return self.weights.classifier

    @model_validator(mode="after")
    def _consistent(self) -> Imported:
        if self.weights.classifier == (self.dataset is None):
            raise ValueError("imported weights name a dataset exactly where they have a classifier for it")
        return self


class SelfSupervised(_Stage):
    """A network trained without labels, from fresh weights."""

    kind: Literal["self_supervised"] = "self_supervised"
    network: Network
    dataset: DatasetSpec
    pretraining: Pretraining
    parent: ClassVar[None] = None
    checkpoint: ClassVar[Checkpoint] = "last"

    @property
    def has_classifier(self) -> bool:
        return False

    @property
    def recipe(self) -> Recipe:
        return self.pretraining.recipe


class Supervised(_Stage):
    """A network trained on labels, from fresh weights."""

    kind: Literal["supervised"] = "supervised"
    network: Network
    dataset: DatasetSpec
    recipe: Recipe
    checkpoint: Checkpoint = "last"
    parent: ClassVar[None] = None


class FineTuned(_Stage):
    """All of a pre-trained network, trained further on labels."""

    kind: Literal["fine_tuned"] = "fine_tuned"
    parent: Annotated[Imported | SelfSupervised, Field(discriminator="kind")]
    dataset: DatasetSpec
    recipe: Recipe
    checkpoint: Checkpoint = "last"

    @property
    def network(self) -> Network:
        return self.parent.network


class NewLayers(_Stage):
    """New layers, a ``head``, trained on a frozen network."""

    kind: Literal["new_layers"] = "new_layers"
    parent: Annotated[Imported | SelfSupervised | Supervised | FineTuned | StudentOf, Field(discriminator="kind")]
    dataset: DatasetSpec
    head: HeadSpec
    checkpoint: Checkpoint = "last"

    @property
    def network(self) -> Network:
        return self.parent.network

    @property
    def recipe(self) -> Recipe:
        return self.head.recipe


class StudentOf(_Stage):
    """The student of another run; its record is that run's."""

    kind: Literal["student_of"] = "student_of"
    run: RunSpec
    parent: ClassVar[None] = None

    @property
    def network(self) -> Network:
        return self.run.student

    @property
    def dataset(self) -> DatasetSpec:
        return self.run.dataset

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def checkpoint(self) -> Checkpoint:
        return self.run.checkpoint

    @property
    def source_run(self) -> RunSpec:
        return self.run

    @property
    def plugins(self) -> dict[str, str]:
        return self.run.plugins


Teacher = Imported | SelfSupervised | Supervised | FineTuned | NewLayers | StudentOf
"""A finished network that can teach."""


class Adapter(_Stage):
    """The adapter that a term trains on a finished teacher, its ``parent``, before any student.

    ``hyperparameters`` are those of the term that the adapter depends on, where they differ from the term's defaults;
    ``source_sha256`` is the hash of the term's code.
    """

    kind: Literal["adapter"] = "adapter"
    parent: Annotated[Teacher, Field(discriminator="kind")]
    dataset: DatasetSpec
    term: Name
    hyperparameters: dict[str, Any] = {}
    version: StrictInt = 1
    source_sha256: Sha256 | None = None
    recipe: Recipe
    checkpoint: ClassVar[Checkpoint] = "last"

    @property
    def network(self) -> Network:
        return self.parent.network

    @property
    def has_classifier(self) -> bool:
        return self.parent.has_classifier

    @property
    def plugins(self) -> dict[str, str]:
        return self.parent.plugins | ({self.term: self.source_sha256} if self.source_sha256 else {})


Stage = Teacher | Adapter
_STAGE: TypeAdapter[Stage] = TypeAdapter(Annotated[Stage, Field(discriminator="kind")])


def stage_from(value: Any) -> Stage:
    """A stage from its JSON. Raises pydantic's ValidationError."""
    return _STAGE.validate_python(value)


def lineage(stage: Stage) -> list[Stage]:
    """All stages of a teacher, the first one first."""
    return [*(lineage(stage.parent) if stage.parent else ()), stage]


def trained_stages(stage: Stage) -> list[Stage]:
    """The stages of a teacher that have a teacher's record: all but another run's student."""
    return [each for each in lineage(stage) if not isinstance(each, StudentOf)]


def teaching_run(teacher: Stage | None) -> RunSpec | None:
    """The run whose student is a teacher's first stage; None if it has none."""
    return lineage(teacher)[0].source_run if teacher else None


def stage_label(stage: Stage) -> str:
    """One line for lists and messages, such as ``resnet20 (SimCLR) on digits + new layers``."""
    made, added = str(stage.network), ""
    for each in lineage(stage):
        match each:
            case Imported():
                made += f" ({each.weights.source} weights)"
            case SelfSupervised():
                made += " (SimCLR)"
            case StudentOf():
                made += " (a run's student)"
            case FineTuned():
                made += ", fine-tuned"
            case NewLayers():
                added += " + new layers"
            case Adapter():
                options = ", ".join(f"{key}={value}" for key, value in each.hyperparameters.items())
                added += f" + the adapter of {each.term}" + (f" ({options})" if options else "")
    return made + (f" on {stage.dataset.name}" if stage.dataset else "") + added


class RunSpec(Variant):
    """One student trained once.

    ``teacher`` is None for methods that read no teacher; ``head`` is the teacher's new layers that learn during the run
    under the strategy `simultaneous`, else None. ``teacher_view`` is how the teacher sees the images, sampled independently
    of the student's; None where it sees the student's batch. ``teacher_precision`` is that of its passes where it is not the
    recipe's; under ``teacher_inference`` its batch normalisation is folded into its convolutions, and it may be compiled.
    ``adapters`` are what the terms train on the teacher first.
    """

    kind: Literal["run"] = "run"
    student: Network
    teacher: Annotated[Teacher, Field(discriminator="kind")] | None = None
    head: HeadSpec | None = None
    teacher_view: Preprocessing | None = None
    teacher_precision: Precision | None = None
    teacher_inference: TeacherInference | None = None
    terms: tuple[WeightedTerm, ...]
    dataset: DatasetSpec
    scenario: Scenario = Scenario()
    recipe: Recipe
    trial: Annotated[StrictInt, Field(ge=0)] = 0
    checkpoint: Checkpoint = "last"
    adapters: tuple[Adapter, ...] = ()

    @model_validator(mode="after")
    def _adapters_fit(self) -> RunSpec:
        if any(adapter.parent != self.teacher for adapter in self.adapters):
            raise ValueError("a run's adapters belong to its own teacher")
        return self

    @property
    def dependencies(self) -> tuple[Stage, ...]:
        """The stages that must be finished before it can start: its teacher, and the adapters of its terms."""
        return (*([self.teacher] if self.teacher else ()), *self.adapters)

    @property
    def plugins(self) -> dict[str, str]:
        """The source hashes of all terms and networks that are not bundled, its teachers' included, by name."""
        own = {use.name: use.source_sha256 for use in self.terms if use.source_sha256} | code_of(self.student)
        return {**own, **{name: sha256 for stage in self.dependencies for name, sha256 in stage.plugins.items()}}

    @property
    def stages(self) -> list[Stage]:
        """All stages of its dependencies, each once, parents first."""
        return list({stage.id: stage for each in self.dependencies for stage in trained_stages(each)}.values())

    @property
    def teacher_seen_elsewhere(self) -> bool:
        """Whether its finished teacher sees other test images, or other preprocessing, than in its own record."""
        teacher = self.teacher
        if teacher is None or teacher.dataset is None or self.head:
            return False
        own = preprocessing_of(teacher)
        return _tested(self.dataset, self.teacher_view or self.recipe) != _tested(teacher.dataset, own)

    @property
    def stream_id(self) -> str:
        """Equal for runs with the same batches."""
        recipe, data, scenario = self.recipe, self.dataset.canonical(), self.scenario.canonical()
        return digest([data, scenario, recipe.batch, recipe.preprocessing.id, self.trial])

    @property
    def cohort_key(self) -> str:
        """Equal for runs that can share the teacher's forward pass: the same batches, teacher, new layers and view of it."""
        shared = (self.teacher, self.head, self.teacher_view)
        precisions = self.recipe.precision, self.teacher_precision, self.teacher_inference
        return digest([self.stream_id, *precisions, *(each.id if each else "" for each in shared)])


def preprocessing_of(stage: Stage) -> Preprocessing:
    """The test preprocessing of a finished network, as its own training defines it."""
    return stage.weights.preprocessing if isinstance(stage, Imported) else stage.recipe.preprocessing


def _tested(data: DatasetSpec, view: Preprocessing) -> tuple[object, ...]:
    """The test images and their preprocessing, as one comparable value."""
    images = data.key, data.class_count, data.test_per_class, data.val_split, data.size, data.stand_in
    return *images, *seen_as(data, view).values()


def seen_as(data: DatasetSpec, view: Preprocessing) -> dict[str, Any]:
    """The size, mean and std of a data set's images as a network sees them, whether the view or the data set states them."""
    known = data.facts
    return {"size": view.size or data.image_size, "mean": view.mean or known.mean, "std": view.std or known.std}


StudentOf.model_rebuild()
NewLayers.model_rebuild()
Adapter.model_rebuild()
RunSpec.model_rebuild()
