"""How alike a student's maps and the teacher's become: measured on the way, while the student is tested."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.evaluation import LayerSimilarity
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs
from kdbench.training.guard import Watch, aliased, relisted, rows_of
from kdbench.training.teacher import FrozenTeacher
from kdbench.training.trainer import Trainer


SLICE = 64
"""Test images whose similarities are compared with each other: the batch size of SemCKD's experiments."""


class CachedTeacher:
    """What the teacher gives for the test batch that students are looking at, in float32.

    It runs once for each batch, however many students ask for it, and not at all where none asks; once more where a term may
    have written into its outputs. Use one for each pass.
    """

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.network = teacher.network
        self.own = iter(teacher.own_test) if teacher.own_test is not None else None
        self.images: Tensor | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """Return its outputs for the batch, in its own view of the images where it has one."""
        if images is not self.images:
            self.images = images
            self.view = next(self.own)[0] if self.own else images
            self.outputs: Outputs | None = None
        if self.outputs is None:
            self.outputs = self.network(self.view)
        return self.outputs


class LayerSimilarityMonitor(nn.Module):
    """A student under test whose maps are compared with the teacher's; ``similarity`` holds what comes of it.

    Slices have 64 images, or as many as a batch where a term needs full ones, which then leaves shorter slices out.
    """

    def __init__(
        self, trainer: Trainer, shown: CachedTeacher, guarded: Callable[[Trainer, Callable[[], None]], None]
    ) -> None:
        super().__init__()
        self.network, self.terms = trainer.network, trainer.terms
        self.trainer, self.shown, self.guarded = trainer, shown, guarded
        self.similarity = LayerSimilarity()

    def forward(self, images: Tensor) -> Outputs:
        """Return what the network gives."""
        outputs: Outputs = self.network(images)
        if self.trainer.failure is None:
            self.guarded(self.trainer, partial(self._compare, images, outputs))
            if self.trainer.failure is not None:
                self.shown.outputs = None
        return outputs

    @torch.no_grad()
    def _compare(self, images: Tensor, outputs: Outputs) -> None:
        size = self.trainer.recipe.batch if self.trainer.full_batches else SLICE
        end = len(images) // size * size if self.trainer.full_batches else len(images)
        teacher = aliased(self.shown(images))
        watch = Watch(values=self.trainer.foreign, start=0)
        watch.add("student", outputs)
        watch.add("teacher", teacher)
        for start in range(0, end, size):
            ours, theirs = (rows_of(each, slice(start, start + size)) for each in (outputs, teacher))
            pairs = []
            for name, term in self.terms.items():
                pairs += cast(Term, term).layer_pairs(relisted(ours), relisted(theirs))
                watch.check(f"the term '{name}'")
            if pairs:
                self.similarity.add(pairs)
