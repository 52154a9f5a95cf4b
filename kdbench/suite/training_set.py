"""What a student is trained and measured on: a data set or a part of it, and what is done to its training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from kdbench.catalogue.datasets import dataset
from kdbench.suite.recipe import Name, PositiveInt, Share, Side, Spec


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
    size: Side | None = None
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
    def side(self) -> int:
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
