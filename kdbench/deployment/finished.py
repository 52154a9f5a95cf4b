"""Finished networks with what a user needs of them: where they come from, and how their test shows them images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdbench.catalogue.datasets import dataset as find_dataset
from kdbench.catalogue.plugins import locating_modules
from kdbench.catalogue.text import command
from kdbench.datafiles.folders import class_names
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint
from kdbench.models.backbone import Backbone
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.store.suites import image_sources
from kdbench.suite.specs import (
    Checkpoint,
    DatasetSpec,
    Network,
    Preprocessing,
    RunSpec,
    StudentOf,
    Teacher,
    preprocessing_of,
    stage_from,
    stage_label,
)
from kdbench.training.build import archived_modules, load, load_teacher, on_device, seen_size
from kdbench.training.measuring import online_teacher


@dataclass(frozen=True)
class FinishedNetwork:
    """A classifier in eval mode.

    id:      of its run or teacher; the file's name for a checkpoint
    label:   how lists call it
    network: takes normalised images of ``size`` × ``size`` pixels
    spec:    of its run, or of its teacher's last stage; None for a checkpoint
    dataset: the data set that it was trained for
    view:    how it sees test images
    top1:    the accuracy in % that its record holds for these weights; None for a checkpoint
    sources: where images of one's own are, by the hash of their content
    """

    id: str
    label: str
    network: Backbone
    spec: RunSpec | Teacher | None
    architecture: Network
    dataset: DatasetSpec
    view: Preprocessing
    top1: float | None = None
    sources: Mapping[str, ImageSource] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return seen_size(self.dataset, self.view)

    def class_names(self, data: Path) -> tuple[str, ...]:
        """The K classes in the order of the logits: their names, or their numbers where these are unknown."""
        count = self.dataset.class_count
        return class_names(self.dataset.facts, data)[:count] or tuple(map(str, range(count)))


def find_network(id: str, store: Store, data: Path, device: torch.device) -> FinishedNetwork:
    """The student of a run, or a teacher, by its id or how that begins.

    Raises BadInput for an unknown or unfinished one and for an encoder, BadRecord where the weights are damaged or were not
    kept.
    """
    run, teacher = store.find("runs", id), store.find("teachers", id)
    if run and teacher:
        raise BadInput(f"'{id}' begins the ids of run {run.id} and of teacher {teacher.id}: give more digits")
    if teacher is None:
        student = load(run.id if run else id, store, data, str(device))
        spec = RunSpec.model_validate(store.run(run.id if run else id).spec())
        made = StudentOf(run=spec)
        return FinishedNetwork(
            spec.id,
            stage_label(made),
            student.network,
            spec,
            spec.student,
            spec.dataset,
            spec.recipe.preprocessing,
            _accuracy(store.run(spec.id), spec.checkpoint),
            image_sources(store),
        )
    if not teacher.done():
        raise BadInput(f"teacher {teacher.id} in {store.root} is not finished: run its suite again to resume it")
    stage = stage_from(teacher.spec())
    if isinstance(stage, StudentOf) or stage.kind == "adapter":
        raise BadInput(f"teacher {teacher.id} ({stage_label(stage)}) is no network that classifies images")
    if not stage.has_classifier or stage.dataset is None:
        more = command("list", "teachers", results=store.root)
        raise BadInput(
            f"teacher {teacher.id} ({stage_label(stage)}) is an encoder without classes: name the new layers trained on it "
            f"({more})"
        )
    with locating_modules(archived_modules(stage.network, store)):
        network = load_teacher(stage, store, device).eval().requires_grad_(False)
    view = preprocessing_of(stage)
    return FinishedNetwork(
        teacher.id,
        stage_label(stage),
        network,
        stage,
        stage.network,
        stage.dataset,
        view,
        _accuracy(teacher, stage.checkpoint),
        image_sources(store),
    )


def find_teacher_of(run: str, store: Store, data: Path, device: torch.device) -> FinishedNetwork:
    """The teacher that a finished run learned from, as it was when the run ended.

    Raises what ``find_network`` raises, and BadInput for a run without a teacher.
    """
    spec = find_network(run, store, data, torch.device("cpu")).spec
    if not isinstance(spec, RunSpec) or spec.teacher is None:
        raise BadInput(f"run {run} learned from no teacher")
    stage = spec.teacher
    with locating_modules(archived_modules(stage.network, store)):
        network = online_teacher(spec, store, device) if spec.head else load_teacher(stage, store, device)
    view = spec.teacher_view or spec.recipe.preprocessing
    ready = network.eval().requires_grad_(False)
    return FinishedNetwork(stage.id, stage_label(stage), ready, stage, stage.network, spec.dataset, view)


def _accuracy(record: Record, kept: Checkpoint) -> float | None:
    """The top-1 accuracy in % of the epoch whose weights are kept."""
    result = record.result()
    accuracy = result and (result.best if kept == "best" else result.last)
    return accuracy.top1 if accuracy else None


def open_checkpoint(
    file: Path, network: str, dataset: str, key: str | None, view: Preprocessing, device: torch.device
) -> FinishedNetwork:
    """The network of a weights file, which is read and never executed. Raises BadInput where the file does not hold it."""
    spec = DatasetSpec(name=find_dataset(dataset).name)
    built = build(network, spec.class_count)
    load_checkpoint(built, file, key=key)
    ready = on_device(built, device).eval().requires_grad_(False)
    return FinishedNetwork(file.name, f"{network} on {spec.name} ({file.name})", ready, None, network, spec, view)
