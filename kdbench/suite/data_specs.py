"""What specs say of data: the data set or images of one's own, the part of it, and the scenario."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_serializer,
    model_validator,
)

from kdbench.catalogue.datasets import Dataset, dataset
from kdbench.suite.components import Channels, ImageSize, Name, PositiveChannels, PositiveInt, Sha256, Share, Spec


class ImagesSpec(Spec):
    """Images of one's own: the hash of their content, what follows from it, and the names of their classes.

    ``streamed`` images stay files: a random part of each, instead of a padded crop, is decoded in each epoch.
    """

    sha256: Sha256
    classes: Annotated[StrictInt, Field(ge=2)]
    size: ImageSize
    train: PositiveInt
    test: PositiveInt
    mean: Channels
    std: PositiveChannels
    class_names: tuple[StrictStr, ...]
    streamed: StrictBool = False


class DatasetSpec(Spec):
    """A data set, or a class-balanced part of it: the first ``classes`` classes, a fixed draw of images of each.

    Its images are resized to ``size`` × ``size`` pixels before anything else; None leaves them as they are.

    With ``val_split`` that share of each class of the training set is held out and stands in for the test set, which is left
    alone: ``train_per_class`` are drawn from the rest, ``test_per_class`` from what is held out.

    What a suite calls ``images`` of one's own is no part of their identity.

    A ``stand_in`` has the embedded digits in the place of its images, in the size of these, and so no more than ten classes.
    """

    name: Name
    classes: Annotated[StrictInt, Field(ge=2)] | None = None
    train_per_class: PositiveInt | None = None
    test_per_class: PositiveInt | None = None
    val_split: Annotated[StrictFloat, Field(gt=0.0, lt=1.0)] | None = None
    size: ImageSize | None = None
    stand_in: StrictBool = False
    images: ImagesSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("images") and "name" not in value:
            return {**value, "name": f"images {ImagesSpec.model_validate(value['images']).sha256[:8]}"}
        return value

    @model_serializer(mode="wrap")
    def _without_own_name(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        if self.images:
            values.pop("name", None)
        return values

    @model_validator(mode="after")
    def _enough_digits(self) -> DatasetSpec:
        if self.stand_in and self.class_count > dataset("digits").classes:
            raise ValueError("the digits that stand in have ten classes")
        return self

    @property
    def whole(self) -> DatasetSpec:
        """The same classes with all their images and the same test half. A stand-in is returned unchanged."""
        if self.stand_in:
            return self
        return self.model_copy(update={"train_per_class": None, "test_per_class": None})

    @property
    def facts(self) -> Dataset:
        """What is known of the whole data set."""
        if self.images is None:
            return dataset(self.name)
        known = self.images.model_dump(exclude={"sha256"})
        return Dataset(name=self.name, summary="images of one's own", **known)

    @property
    def key(self) -> str:
        """What stands for its images in seeds."""
        return self.images.sha256 if self.images else self.name

    @property
    def image_size(self) -> int:
        """The images' side in pixels."""
        return self.size or self.facts.size

    @property
    def class_count(self) -> int:
        """The number of classes."""
        return self.classes or self.facts.classes

    def split(self, train: int, test: int) -> tuple[int, int]:
        """The training and test images per class, given those of the official halves."""
        if self.val_split is None:
            return train, test
        held_out = round(self.val_split * train)
        return train - held_out, held_out


class Scenario(Spec):
    """Changes to the student's training set.

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
