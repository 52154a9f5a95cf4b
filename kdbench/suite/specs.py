"""What a run is: exactly the values that can change its result, and the identity that follows from them.

An id is a hash of the canonical JSON of a spec without the fields that hold their default. So neither the order of keys,
nor the suite, nor a path or device, nor a field that kdbench learns later on, changes the id of a run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("must rise from one to the next")
    return values


Strategy = Literal["pretrained", "sequential", "simultaneous"]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0.0)]
PositiveInt = Annotated[StrictInt, Field(ge=1)]
Share = Annotated[StrictFloat, Field(ge=0.0, lt=1.0)]
Name = Annotated[StrictStr, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class Spec(BaseModel):
    """A frozen value object with an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> dict[str, Any]:
        """JSON-ready values, without the fields that hold their default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for this spec."""
        return digest(self.canonical())


def digest(value: Any) -> str:
    """A hash of a JSON-ready value that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Recipe(Spec):
    """How one network is trained: SGD with stepwise decay, crop and flip.

    The learning rate is multiplied by ``decay`` after each of the ``milestones`` (epochs, counted from 1). Images are
    zero-padded by ``crop_padding`` pixels and cropped back, flipped with probability one half if ``flip``, and
    normalised with ``mean`` and ``std`` (the data set's own where None). ``node_embedding`` is the width of EGA's layer
    between backbone and classifier (None: the network's own classifier). Test accuracy is measured after every
    ``evaluate_every``-th epoch and after the last.
    """

    epochs: PositiveInt
    batch: Annotated[StrictInt, Field(ge=2)]
    lr: PositiveNumber
    momentum: Share = 0.0
    weight_decay: Annotated[Number, Field(ge=0.0)] = 0.0
    nesterov: StrictBool = False
    milestones: Annotated[tuple[PositiveInt, ...], AfterValidator(_rising)] = ()
    decay: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 0.1
    crop_padding: Annotated[StrictInt, Field(ge=0)] = 0
    flip: StrictBool = False
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[PositiveNumber, PositiveNumber, PositiveNumber] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    node_embedding: PositiveInt | None = None
    evaluate_every: PositiveInt = 1

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1."""
        return self.lr * self.decay ** sum(epoch > milestone for milestone in self.milestones)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class DatasetSpec(Spec):
    """A data set, or a class-balanced part of it: the first ``classes`` classes, a fixed draw of images of each."""

    name: Name
    classes: Annotated[StrictInt, Field(ge=2)] | None = None
    train_per_class: PositiveInt | None = None
    test_per_class: PositiveInt | None = None


class Scenario(Spec):
    """What is done to the student's training set.

    ``fraction`` of each class is kept; the labels of a share ``label_noise`` of each class move to another class.
    """

    fraction: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    label_noise: Share = 0.0


class TermUse(Spec):
    """One term of a method: its name, weight, and the hyper-parameters that differ from the term's defaults."""

    name: Name
    weight: Number = 1.0
    hyperparameters: dict[str, Any] = {}
    version: StrictInt = 1


class HeadSpec(Spec):
    """The new layers on a frozen foundation backbone: Linear to ``width``, Linear to the classes; and their training."""

    width: PositiveInt
    recipe: Recipe


class TeacherSpec(Spec):
    """A trained teacher: what made it. With ``head``, the backbone is frozen and only the head was trained.

    ``checkpoint`` says which epoch's weights are the teacher: the last, or the best by test accuracy.
    """

    network: Name
    dataset: DatasetSpec
    recipe: Recipe
    checkpoint: Literal["last", "best"] = "last"
    seed: StrictInt = 0
    head: HeadSpec | None = None

    @property
    def backbone(self) -> TeacherSpec:
        """The teacher that must exist before the head can be trained."""
        return self.model_copy(update={"head": None})


class RunSpec(Spec):
    """One student trained once.

    ``teacher`` is None for methods that read no teacher; ``head`` is what the teacher learns beside the student under the
    strategy `simultaneous`, else None.
    """

    student: Name
    teacher: TeacherSpec | None = None
    head: HeadSpec | None = None
    terms: tuple[TermUse, ...]
    dataset: DatasetSpec
    scenario: Scenario = Scenario()
    recipe: Recipe
    trial: Annotated[StrictInt, Field(ge=0)] = 0

    @property
    def stream_id(self) -> str:
        """Equal for the runs that see the same batches."""
        recipe = self.recipe.model_dump(mode="json", include={"batch", "crop_padding", "flip", "mean", "std"})
        return digest([self.dataset.canonical(), self.scenario.canonical(), recipe, self.trial])
