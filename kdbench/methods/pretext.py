"""Pretext tasks of self-supervision: the scores that a head gives to views of images, and the right answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import VIEWS_PER_IMAGE, Batch
from kdbench.data.views import TRANSFORMS, interleave_views
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, unit_rows
from kdbench.methods.term import Part
from kdbench.models.outputs import Outputs


class Pretext(ABC):
    """A task on the head's outputs for a batch's views [(1 + VIEWS_PER_IMAGE) · B, W]: each image, followed by its copies."""

    def __init__(self, transforms: str) -> None:
        self.transforms = transforms

    @abstractmethod
    def width(self, embedding: int, images: int) -> int:
        """W, for embeddings of this width and a training set of so many images."""

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """[R, answers]: the score of each possible answer, for the R views that the task asks about."""

    @abstractmethod
    def answers(self, batch: Batch) -> Tensor:
        """[R] int64: the right ones."""


class Contrastive(Pretext):
    """Which image of the batch is this a view of? R = VIEWS_PER_IMAGE · B, one answer for each image, scored by cosines."""

    def width(self, embedding: int, images: int) -> int:
        """As wide as the embedding."""
        return embedding

    def scores(self, outputs: Tensor) -> Tensor:
        """Cosines of the copies' outputs with the images'."""
        units = unit_rows(outputs, epsilon=1e-8)
        return views_in(units) @ units[:: 1 + VIEWS_PER_IMAGE].T

    def answers(self, batch: Batch) -> Tensor:
        """Each copy's own image."""
        return torch.arange(len(batch), device=batch.labels.device).repeat_interleave(VIEWS_PER_IMAGE)


class Exemplar(Pretext):
    """Which of the training set's images is this a copy of? R = VIEWS_PER_IMAGE · B."""

    def width(self, embedding: int, images: int) -> int:
        """One score for each training image."""
        return images

    def scores(self, outputs: Tensor) -> Tensor:
        """Those of the copies."""
        return views_in(outputs)

    def answers(self, batch: Batch) -> Tensor:
        """Each image's position in the training set."""
        return batch.indices.repeat_interleave(VIEWS_PER_IMAGE)


class Jigsaw(Pretext):
    """In which order are the image's quarters? R = VIEWS_PER_IMAGE · B, 24 answers."""

    def width(self, embedding: int, images: int) -> int:
        """One score for each permutation."""
        return TRANSFORMS[self.transforms].classes

    def scores(self, outputs: Tensor) -> Tensor:
        """Those of the copies."""
        return views_in(outputs)

    def answers(self, batch: Batch) -> Tensor:
        """The permutations."""
        return batch.views[self.transforms].labels


class Rotation(Jigsaw):
    """By how many quarter turns is the image turned? R = (1 + VIEWS_PER_IMAGE) · B, the images among them, 4 answers."""

    def scores(self, outputs: Tensor) -> Tensor:
        """Those of all views."""
        return outputs

    def answers(self, batch: Batch) -> Tensor:
        """The quarter turns."""
        turns = batch.views[self.transforms].labels
        return interleave_views(torch.zeros_like(batch.labels), turns)


TASKS: dict[str, type[Pretext]] = {
    "contrastive": Contrastive,
    "exemplar": Exemplar,
    "jigsaw": Jigsaw,
    "rotation": Rotation,
}


def pretext(name: str, transforms: str) -> Pretext:
    """A task on copies of the kind ``transforms``. Raises BadInput where the task brings a kind of its own."""
    if name in ("jigsaw", "rotation") and transforms != "rotations":
        raise BadInput(
            f"sskd: the pretext '{name}' brings its own transforms: leave 'transforms' out, not {transforms!r}"
        )
    return TASKS[name]("jigsaw" if name == "jigsaw" else transforms)


class SelfSupervised(Part):
    """A head on the frozen teacher's embedding that learns a pretext task from cross-entropy."""

    def __init__(self, task: Pretext, embedding: int, images: int) -> None:
        super().__init__()
        self.task = task
        self.transforms = task.transforms
        self.width = task.width(embedding, images)
        self.head = head(embedding, self.width)

    def scores(self, outputs: Outputs) -> Tensor:
        """The task's scores of what the teacher gives."""
        return scores(self.head, self.task, outputs.embedding)

    def loss(self, teacher: Outputs, batch: Batch) -> Tensor:
        """Cross-entropy of the task's scores as they are, without temperature."""
        return F.cross_entropy(self.scores(teacher), self.task.answers(batch))


def head(embedding: int, width: int) -> nn.Sequential:
    """Linear, ReLU, Linear; the inner width is the embedding's."""
    return nn.Sequential(nn.Linear(embedding, embedding), nn.ReLU(), nn.Linear(embedding, width))


@in_float32
def scores(head: nn.Module, task: Pretext, embedding: Tensor) -> Tensor:
    """A task's scores of embeddings, in float32 throughout, so that the order of scores does not depend on precision."""
    return task.scores(head(embedding))


def views_in(rows: Tensor) -> Tensor:
    """The copies' rows [VIEWS_PER_IMAGE · B, …] among those of images and copies."""
    return rows.reshape(-1, 1 + VIEWS_PER_IMAGE, *rows.shape[1:])[:, 1:].flatten(0, 1)
