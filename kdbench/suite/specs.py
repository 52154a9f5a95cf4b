"""Specifications of runs and teachers: every field that can change a result, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from kdbench.catalogue.datasets import dataset
from kdbench.suite.recipe import (
    Channels,
    ImageSize,
    Name,
    Number,
    PositiveChannels,
    PositiveInt,
    PositiveNumber,
    Preprocessing,
    Pretraining,
    Recipe,
    Share,
    SimCLR,
    Spec,
    Width,
    digest,
)


class DatasetSpec(Spec):
    """A data set, or a class-balanced part of it: the first ``classes`` classes, a fixed draw of images of each.

    Its images are resized to ``size`` × ``size`` pixels before anything else; None leaves them as they are.

    With ``val_split`` that share of each class of the training set is held out and stands in for the test set, which is left
    alone: ``train_per_class`` are drawn from the rest, ``test_per_class`` from what is held out.

    A ``stand_in`` has the embedded digits in the place of its images, in the size of these, and so no more than ten classes.
    """

    name: Name
    classes: Annotated[StrictInt, Field(ge=2)] | None = None
    train_per_class: PositiveInt | None = None
    test_per_class: PositiveInt | None = None
    val_split: Annotated[StrictFloat, Field(gt=0.0, lt=1.0)] | None = None
    size: ImageSize | None = None
    stand_in: StrictBool = False

    @model_validator(mode="after")
    def _enough_digits(self) -> DatasetSpec:
        if self.stand_in and self.class_count > dataset("digits").classes:
            raise ValueError("the digits that stand in have ten classes")
        return self

    @property
    def whole(self) -> DatasetSpec:
        """The same classes with all their images, measured on the same half. A stand-in has none beside its own."""
        if self.stand_in:
            return self
        return self.model_copy(update={"train_per_class": None, "test_per_class": None})

    @property
    def image_size(self) -> int:
        """The images' side in pixels."""
        return self.size or dataset(self.name).size

    @property
    def class_count(self) -> int:
        """How many classes it has."""
        return self.classes or dataset(self.name).classes

    def split(self, train: int, test: int) -> tuple[int, int]:
        """How many images of a class there are to train and to measure on, of so many in its official halves."""
        if self.val_split is None:
            return train, test
        held_out = round(self.val_split * train)
        return train - held_out, held_out


class Scenario(Spec):
    """What is done to the student's training set.

    ``fraction`` of each class is kept. A share ``label_noise`` of each class then gets labels drawn uniformly, by ``noise``
    from the `other` classes or from `all`, the true one included. Under `classes` that share of the classes is instead given
    the label of another class as a whole, and all other labels stay true.
    """

    fraction: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    label_noise: Share = 0.0
    noise: Literal["other", "all", "classes"] = "other"

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.noise != "other" and not self.label_noise:
            raise ValueError(f"noise '{self.noise}' needs a label_noise above 0")
        return self


__all__ = [
    "DatasetSpec",
    "HeadSpec",
    "Name",
    "Number",
    "PartSpec",
    "PositiveInt",
    "PositiveNumber",
    "Preprocessing",
    "Pretraining",
    "Recipe",
    "RunSpec",
    "Scenario",
    "Share",
    "SimCLR",
    "Spec",
    "Strategy",
    "TeacherSpec",
    "WeightedTerm",
    "Weights",
    "digest",
]

Strategy = Literal["pretrained", "sequential", "simultaneous"]


Sha256 = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


class WeightedTerm(Spec):
    """One term of a method: its name, weight, and the hyper-parameters that differ from the term's defaults.

    ``source_sha256`` is the hash of its code; None where that comes with kdbench and ``version`` stands for it.
    """

    name: Name
    weight: Number = 1.0
    hyperparameters: dict[str, Any] = {}
    version: StrictInt = 1
    source_sha256: Sha256 | None = None


class HeadSpec(Spec):
    """The new layers on a frozen foundation backbone: Linear to ``width``, Linear to the classes; and their training."""

    width: Width
    recipe: Recipe


class Weights(Spec):
    """Weights that were trained elsewhere.

    ``source`` is who publishes them, `file` for one that the user names, known by the ``sha256`` of its content, or
    `random` for fresh ones that take their place in a tiny run.
    ``classifier`` says whether their own classifier is used, too. ``key`` is their place in a file that holds several
    networks; ``mean`` and ``std`` are the normalisation that they were trained on, None where it is the data set's own.
    """

    source: Literal["openai", "torchvision", "file", "random"]
    sha256: Sha256 | None = None
    classifier: StrictBool = True
    key: Name | None = None
    mean: Channels | None = None
    std: PositiveChannels | None = None

    @property
    def view(self) -> Preprocessing:
        """How the images are shown on which their accuracy is measured."""
        return Preprocessing(mean=self.mean, std=self.std)

    @model_validator(mode="after")
    def _known(self) -> Weights:
        if (self.source == "file") != (self.sha256 is not None):
            raise ValueError("a file's weights are known by their sha256, published ones by their source")
        return self


class PartSpec(Spec):
    """What a term trains on a finished teacher before any student, and how.

    ``hyperparameters`` are those of the term on which the part depends, where they differ from the term's defaults;
    ``source_sha256`` is the hash of the term's code.
    """

    term: Name
    hyperparameters: dict[str, Any] = {}
    version: StrictInt = 1
    source_sha256: Sha256 | None = None
    recipe: Recipe


class TeacherSpec(Spec):
    """A teacher: what made it, in up to four stages, each with a record of its own.

    It starts from fresh weights, from ``weights`` that were trained elsewhere, or from ``pretraining`` without labels. With
    a ``recipe``, all of it is then trained on the labels of ``dataset``. With a ``head``, what there is so far is frozen and
    new layers are trained on it. ``checkpoint`` says which epoch's weights are the teacher: the last, or the best by test
    accuracy. ``dataset`` is None for an encoder that was trained elsewhere and is used as it is. Instead of all these,
    ``student`` is the run whose student it is; its record is that run's. A ``part`` is what a term trains beside any
    finished teacher.
    """

    network: Name
    dataset: DatasetSpec | None = None
    recipe: Recipe | None = None
    checkpoint: Literal["last", "best"] = "last"
    seed: StrictInt = 0
    weights: Weights | None = None
    pretraining: Pretraining | None = None
    head: HeadSpec | None = None
    part: PartSpec | None = None
    student: RunSpec | None = None

    @property
    def stage_recipe(self) -> Recipe | None:
        """How the last stage is trained; None where there is nothing to train."""
        if self.part:
            return self.part.recipe
        if self.head:
            return self.head.recipe
        return self.recipe or (self.pretraining.recipe if self.pretraining else None)

    @property
    def parent(self) -> TeacherSpec | None:
        """The stage that must be there before the last one; None where that is the first."""
        if self.part:
            return self._without("part")
        if self.head:
            return self._without("head")
        if self.recipe and (self.weights or self.pretraining):
            return self._without("recipe", "checkpoint")
        return None

    @property
    def stages(self) -> list[TeacherSpec]:
        """The teacher and all that come before it, the first stage first; none for a run's student."""
        return [stage for stage in self.lineage if not stage.source_run]

    @property
    def lineage(self) -> list[TeacherSpec]:
        """The same, with the run's student from which it may start."""
        return [*(self.parent.lineage if self.parent else ()), self]

    @property
    def label(self) -> str:
        """One line for lists and messages, e.g. ``resnet20 (SimCLR) on digits + new layers``."""
        origin = " (SimCLR)" if self.pretraining else f" ({self.weights.source} weights)" if self.weights else ""
        origin = " (a run's student)" if self.student else origin
        tuned = ", fine-tuned" if self.recipe and (self.weights or self.pretraining) else ""
        place = f" on {self.dataset.name}" if self.dataset else ""
        options = ", ".join(f"{key}={value}" for key, value in self.part.hyperparameters.items()) if self.part else ""
        part = f" + the part of {self.part.term}" + (f" ({options})" if options else "") if self.part else ""
        return f"{self.network}{origin}{tuned}{place}" + (" + new layers" if self.head else "") + part

    @property
    def plugins(self) -> dict[str, str]:
        """The hashes of the code of all terms in it that do not come with kdbench, by their names."""
        part = {self.part.term: self.part.source_sha256} if self.part and self.part.source_sha256 else {}
        return {**(self.student.plugins if self.student else {}), **part}

    @property
    def source_run(self) -> RunSpec | None:
        """The run whose student it is, and whose record is its own; None where its record is a teacher's."""
        return None if self.part else self.student

    @property
    def has_classifier(self) -> bool:
        """Whether it gives class scores, not only an embedding."""
        return bool(self.head or self.recipe or self.student or (self.weights and self.weights.classifier))

    def _without(self, *names: str) -> TeacherSpec:
        """The teacher without some of its fields.

        Weights from elsewhere are the same however many images of a data set are used; an encoder whatever it is used on.
        """
        rest = {name: getattr(self, name) for name in type(self).model_fields if name not in names}
        if self.weights and not (rest.get("recipe") or rest.get("head")):
            known = self.dataset if self.weights.classifier else None
            rest |= {"dataset": known and known.whole, "seed": 0, "checkpoint": "last"}
        return TeacherSpec(**rest)

    @model_validator(mode="after")
    def _consistent(self) -> TeacherSpec:
        if self.student and (self.recipe or self.weights or self.pretraining or self.head):
            raise ValueError("a teacher that is a run's student was made by that run alone")
        if not (self.recipe or self.weights or self.pretraining or self.student):
            raise ValueError("a teacher needs a recipe, weights or pretraining")
        if self.weights and self.pretraining:
            raise ValueError("a teacher starts from weights or from pretraining, not from both")
        encoder = self.weights and not (self.weights.classifier or self.recipe or self.head or self.part)
        if self.dataset is None and not encoder:
            raise ValueError("a teacher that has a classifier, or was trained here, needs a dataset")
        return self


class RunSpec(Spec):
    """One student trained once.

    ``teacher`` is None for methods that read no teacher; ``head`` is what the teacher learns beside the student under the
    strategy `simultaneous`, else None. ``view`` is how the teacher sees the images, drawn independently of the student's;
    None where it is shown the student's batch. ``checkpoint`` says which epoch's weights are kept. ``parts`` are what its
    terms train on the teacher first.
    """

    student: Name
    teacher: TeacherSpec | None = None
    head: HeadSpec | None = None
    view: Preprocessing | None = None
    terms: tuple[WeightedTerm, ...]
    dataset: DatasetSpec
    scenario: Scenario = Scenario()
    recipe: Recipe
    trial: Annotated[StrictInt, Field(ge=0)] = 0
    checkpoint: Literal["last", "best"] = "last"
    parts: tuple[TeacherSpec, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        if any(part.part is None or part.parent != self.teacher for part in self.parts):
            raise ValueError("a run's parts belong to its own teacher")
        return self

    @property
    def dependencies(self) -> tuple[TeacherSpec, ...]:
        """What must be there before it can start: its teacher, and the parts that its terms have trained on it."""
        return (*([self.teacher] if self.teacher else ()), *self.parts)

    @property
    def plugins(self) -> dict[str, str]:
        """The hashes of the code of all terms that do not come with kdbench, its teachers' among them, by their names."""
        own = {use.name: use.source_sha256 for use in self.terms if use.source_sha256}
        return {**own, **{name: sha256 for need in self.dependencies for name, sha256 in need.plugins.items()}}

    @property
    def stages(self) -> list[TeacherSpec]:
        """All stages of what it needs, each once, after the stages before it."""
        return list({stage.id: stage for need in self.dependencies for stage in need.stages}.values())

    @property
    def teacher_seen_elsewhere(self) -> bool:
        """Whether its finished teacher sees other test images, or sees them otherwise, than where it was measured."""
        teacher = self.teacher
        if teacher is None or teacher.dataset is None or teacher.student or self.head:
            return False
        own = teacher.stage_recipe or (teacher.weights.view if teacher.weights else Preprocessing())
        return _tested(self.dataset, self.view or self.recipe) != _tested(teacher.dataset, own)

    @property
    def stream_id(self) -> str:
        """Equal for the runs that see the same batches."""
        recipe = self.recipe
        return digest([self.dataset.canonical(), self.scenario.canonical(), recipe.batch, recipe.view.id, self.trial])

    @property
    def cohort_key(self) -> str:
        """Equal for the runs that can share a pass of the teacher: the same batches, teacher, new layers and view of it."""
        parts = (self.teacher, self.head, self.view)
        return digest([self.stream_id, self.recipe.precision, *(part.id if part else "" for part in parts)])


def _tested(data: DatasetSpec, view: Preprocessing) -> tuple[object, ...]:
    """What test images there are, and how they are seen."""
    facts = dataset(data.name)
    images = data.name, data.class_count, data.test_per_class, data.val_split, data.size, data.stand_in
    return *images, view.size or data.image_size, view.mean or facts.mean, view.std or facts.std


TeacherSpec.model_rebuild()
