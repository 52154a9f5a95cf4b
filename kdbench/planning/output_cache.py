"""What could stand in for a frozen teacher's passes: its outputs for all crops of the training images, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdbench.catalogue.terms import term
from kdbench.catalogue.text import file_size
from kdbench.errors import BadRecord
from kdbench.planning.cost import NOTHING, Work, forward, image_counts
from kdbench.store.store import Store
from kdbench.suite.networks import info
from kdbench.suite.specs import NewLayers, RunSpec, Teacher, digest


@dataclass(frozen=True)
class CachedOutputs:
    """The outputs of a ``teacher``, without its new layers, for all ``crops`` of a data set's training images.

    making:  what is to be computed for them, all of it or a cohort's share
    missing: the share of them that is not there yet
    saved:   the share of the time of all cohorts that read them which they save
    """

    id: str
    teacher: Teacher
    dataset: str
    crops: int
    images: int
    bytes: int
    making: Work = NOTHING
    missing: float = 1.0
    saved: float = 0.0

    def __str__(self) -> str:
        what = f"{self.teacher.network} for {self.crops} crops of {self.images:,} images of {self.dataset}"
        return f"{what} ({file_size(self.bytes)})"

    @property
    def effect(self) -> str:
        """What they do to their cohorts' time, as a verb and its object."""
        share = f"saves {self.saved:.0%}" if self.saved >= 0 else f"costs {-self.saved:.0%} more"
        return f"{share} of their cohorts' time"

    def share(self, factor: float) -> CachedOutputs:
        """The same for a cohort that makes so much of them."""
        return replace(self, making=self.making * factor)

    def folder(self, store: Store) -> Path | None:
        """Where they are, or will be; None as long as the teacher's weights are not there."""
        try:
            weights = store.hashes([self.teacher])
        except BadRecord:
            return None
        return store.outputs(f"{self.id}-{weights[:12]}") if weights else None

    def as_in(self, store: Store) -> CachedOutputs:
        """The same, less what is there already."""
        folder = self.folder(store)
        missing = 1 - len([*folder.glob("[!.]*.bin")]) / self.crops if folder else 1.0
        return replace(self, missing=missing, making=self.making * missing)


def cached_outputs(runs: Sequence[RunSpec]) -> CachedOutputs | None:
    """What could stand in for the passes of a cohort's teacher. None where its students see transformed copies, or read maps.

    Of images that stay files there are too many crops, and a few-shot subset is another one in each trial.
    """
    taught = [run for run in runs if run.teacher]
    if not taught or taught[0].dataset.facts.streamed or taught[0].scenario.fraction < 1:
        return None
    terms = [(term(use.name, use.source_sha256), use.hyperparameters) for run in taught for use in run.terms]
    if any(each.views or each.needs_maps(given) for each, given in terms):
        return None
    run, teacher = taught[0], taught[0].teacher
    assert teacher
    headed = run.head is not None or isinstance(teacher, NewLayers)
    teacher = teacher.parent if isinstance(teacher, NewLayers) else teacher
    view, (images, _) = (run.teacher_view or run.recipe).preprocessing, image_counts(run.dataset)
    precision, shown = run.teacher_precision or run.recipe.precision, images * view.crops
    key = [teacher.id, headed, run.dataset.canonical(), view.id, precision, run.teacher_inference]
    classes = teacher.dataset.class_count if teacher.dataset and teacher.has_classifier and not headed else 0
    size = shown * (info(teacher.network).embedding + classes) * (2 if precision == "bf16" else 4)
    making = forward(teacher.network, run.dataset, shown, shown / run.recipe.batch, view)
    return CachedOutputs(digest(key), teacher, run.dataset.name, view.crops, images, size, making)
