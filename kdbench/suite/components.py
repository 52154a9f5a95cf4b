"""What specs are made of: numbers, preprocessing, recipes, networks, terms, weights.

An id is a hash of the canonical JSON of a spec without the fields that hold their default. So neither the order of keys,
nor the suite, nor a path or device, nor a field that kdbench learns later on, changes the id of a run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_serializer,
    model_validator,
)

from kdbench.catalogue.text import LONGEST


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("must rise from one to the next")
    return values


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("must name the smaller end first")
    return ends


Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0.0)]
PositiveInt = Annotated[StrictInt, Field(ge=1)]
Epochs = Annotated[StrictInt, Field(ge=1, le=100_000)]
LearningRate = Annotated[Number, Field(gt=0.0, le=100.0)]
Width = Annotated[StrictInt, Field(ge=1, le=65_536)]
Precision = Literal["fp32", "bf16"]

TeacherInference = Literal["folded", "compiled"]
ImageSize = Annotated[StrictInt, Field(ge=8, le=1024)]
"""Of an image, in pixels."""
Share = Annotated[StrictFloat, Field(ge=0.0, lt=1.0)]
_Part = Annotated[StrictFloat, Field(gt=0.0, le=1.0)]
_Ratio = Annotated[StrictFloat, Field(ge=0.01, le=100.0)]
Sha256 = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class Spec(BaseModel):
    """A frozen value object with an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> dict[str, Any]:
        """JSON-ready values, without the fields that hold their default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for this spec."""
        return digest(self.canonical())

    def __hash__(self) -> int:
        return hash(self.id)  # some fields are mappings

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy with some fields changed and a new id."""
        if unknown := (update or {}).keys() - type(self).model_fields.keys():
            raise ValueError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        copied = super().model_copy(update=update, deep=deep)
        for worked_out in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[worked_out]
        return copied


class Variant(Spec):
    """A member of a union of specs, discriminated by ``kind``, which is always serialised."""

    kind: Any

    @model_serializer(mode="wrap")
    def _with_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **serialise(self)}


def digest(value: Any) -> str:
    """A hash of a JSON-ready value that does not depend on the order of keys."""
    return hashed(canonical_text(value))


def canonical_text(value: Any) -> str:
    """A JSON-ready value as the one text that stands for it."""
    return _CANONICAL.encode(value)


def hashed(text: str) -> str:
    """Twelve hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


_Mean = Annotated[Number, Field(ge=0.0, le=1.0)]
_Deviation = Annotated[Number, Field(gt=0.0, le=1.0)]
Channels = tuple[_Mean, _Mean, _Mean]
PositiveChannels = tuple[_Deviation, _Deviation, _Deviation]


class Preprocessing(Spec):
    """The preprocessing and augmentation of a network's input.

    Images are zero-padded by ``crop_padding`` pixels and cropped back, resized bicubically to ``size`` × ``size`` pixels
    (None: as they are), flipped with probability one half if ``flip``, and normalised with ``mean`` and ``std``, for values
    from 0 to 1 (the data set's own where None). Tests see the whole image, without crop and flip.

    Of images that stay files (ImageNet) training sees a random part instead of a crop of the padded image: of an area, as a
    share of the image's, within ``crop_area``, and a ratio of width to height within ``crop_ratio``. None: 0.08 to 1, and 3:4
    to 4:3. Tests see their centre. Both are resized bilinearly.
    """

    crop_padding: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    flip: StrictBool = False
    mean: Channels | None = None
    std: PositiveChannels | None = None
    size: ImageSize | None = None
    crop_area: Annotated[tuple[_Part, _Part], AfterValidator(_ordered)] | None = None
    crop_ratio: Annotated[tuple[_Ratio, _Ratio], AfterValidator(_ordered)] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing alone, without the fields of a subclass."""
        return Preprocessing(**{name: getattr(self, name) for name in Preprocessing.model_fields})

    @property
    def crops(self) -> int:
        """How many different crops and flips of an image in memory there are."""
        return (2 * self.crop_padding + 1) ** 2 * (2 if self.flip else 1)


class Recipe(Preprocessing):
    """The training recipe of one network: SGD with stepwise decay on augmented images.

    The learning rate is multiplied by ``decay`` after each of the ``milestones`` (epochs, counted from 1).
    ``node_embedding`` is the width of EGA's layer between backbone and classifier (None: the network's own classifier).
    Test accuracy is measured after every ``evaluate_every``-th epoch and after the last.

    Batch norm normalises each of ``batch_norm_parts`` equal parts of a batch, images in a row, by statistics of its own, and
    its running statistics are those of the first: so torch's DataParallel trains on so many GPUs.
    """

    epochs: Epochs
    batch: Annotated[StrictInt, Field(ge=2, le=65_536)]
    lr: LearningRate
    momentum: Share = 0.0
    weight_decay: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.0
    nesterov: StrictBool = False
    milestones: Annotated[tuple[Epochs, ...], AfterValidator(_rising)] = ()
    decay: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 0.1
    precision: Precision = "fp32"
    node_embedding: Width | None = None
    evaluate_every: Epochs = 1
    batch_norm_parts: PositiveInt = 1

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1."""
        return self.lr * self.decay ** sum(epoch > milestone for milestone in self.milestones)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        parts = self.batch_norm_parts
        if parts > 1 and (self.batch % parts or self.batch // parts < 2):
            raise ValueError(
                f"a batch of {self.batch} has no {parts} equal parts of 2 images or more (batch_norm_parts)"
            )
        return self


def usable_devices(recipes: Sequence[Recipe], devices: int) -> int:
    """The most of so many devices among which batches can be divided equally, and the parts that batch norm makes of them."""

    def divides(count: int, recipe: Recipe) -> bool:
        parts = recipe.batch_norm_parts
        smallest = math.lcm(count, parts)
        whole_parts = parts % count == 0 or count % parts == 0
        return whole_parts and recipe.batch % smallest == 0 and recipe.batch >= 2 * smallest

    return max(count for count in range(1, devices + 1) if count == 1 or all(divides(count, each) for each in recipes))


def late_milestone(milestones: Any, epochs: Any) -> str:
    """What is wrong with milestones beyond the last epoch; "" if nothing. What are no numbers is left to others to report."""
    numbers = [each for each in milestones if isinstance(each, int)] if isinstance(milestones, list) else []
    if numbers and isinstance(epochs, int) and max(numbers) > epochs:
        return f"the rate would fall after epoch {max(numbers)}, but there are {epochs}"
    return ""


class NetworkSpec(Spec):
    """A network that does not come with kdbench, and what is read from it.

    ``build`` is `timm:NAME`, `torchvision:NAME`, or `package.module:name` of a function or class, which is called with the
    ``arguments`` and the number of classes and returns a torch.nn.Module. ``maps`` are the names of the modules that give the
    feature maps f0, f1 … fL, ``embedding`` that of the module that gives the embedding, ``size`` the only side of images, in
    pixels, that the network takes; None: found out in a forward pass. ``source_sha256`` is the hash of the code; None for the
    two libraries, in which the name stands for it. What a suite calls the network, ``name``, is no part of its identity.
    """

    build: Name
    arguments: dict[str, Any] = {}
    maps: tuple[Name, ...] | None = None
    embedding: Name | None = None
    size: ImageSize | None = None
    source_sha256: Sha256 | None = None
    name: Annotated[StrictStr, Field(exclude=True)] = ""

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return self.name or self.build + (f"({options})" if options else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSpec) and self.id == other.id

    __hash__ = Spec.__hash__

    @property
    def library(self) -> str:
        """`timm` or `torchvision` where it is one of theirs; else ""."""
        library = self.build.partition(":")[0]
        return library if library in LIBRARIES else ""


Network = Name | NetworkSpec
"""One of the catalogue's networks, by name, or another."""

LIBRARIES = ("timm", "torchvision")


class SimCLR(Spec):
    """Contrastive learning without labels (Chen et al., ICML 2020): an image's two views against those of other images.

    ``temperature`` divides the similarities; ``projection`` is the width of the two-layer head that is thrown away
    afterwards. The views are random crops of at least ``smallest_crop`` of the area, flipped if the recipe flips, with
    colours changed at ``colour`` times the authors' full strength.
    """

    temperature: Annotated[PositiveNumber, Field(le=1000.0)] = 0.5
    projection: Width = 128
    smallest_crop: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.08
    colour: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.5


class Pretraining(SimCLR):
    """SimCLR and how the network is trained with it."""

    recipe: Recipe


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

    source: Literal["openai", "torchvision", "timm", "file", "random"]
    sha256: Sha256 | None = None
    classifier: StrictBool = True
    key: Name | None = None
    mean: Channels | None = None
    std: PositiveChannels | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the images on which their accuracy is measured."""
        return Preprocessing(mean=self.mean, std=self.std)

    @model_validator(mode="after")
    def _known(self) -> Weights:
        if (self.source == "file") != (self.sha256 is not None):
            raise ValueError("a file's weights are known by their sha256, published ones by their source")
        return self
