"""Teachers by name, resolved to the stages that make them on a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.networks import NetworkInfo, network
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import shorten
from kdbench.errors import BadInput
from kdbench.files import file_hash
from kdbench.suite.components import Channels, PositiveChannels
from kdbench.suite.protocol import Changes, Protocol
from kdbench.suite.specs import (
    Adapter,
    DatasetSpec,
    FineTuned,
    HeadSpec,
    Imported,
    NewLayers,
    Preprocessing,
    SelfSupervised,
    Supervised,
    Teacher,
    WeightedTerm,
    Weights,
)


Source = Literal["random", "published", "file", "simclr"]


@dataclass(frozen=True)
class TeacherConfig:
    """A network and the source of its weights; ``file`` is a user's file, identified by its ``sha256``.

    With ``fine_tune`` the weights are trained further even if their own classifier fits. ``counts`` are the class counts for
    which the file may hold a classifier, None if only its hash is known; ``key``, ``mean`` and ``std`` are those of
    ``Weights``.
    """

    network: str
    source: Source
    sha256: str | None = None
    file: Path | None = None
    fine_tune: bool = False
    counts: frozenset[int] | None = None
    key: str | None = None
    mean: Channels | None = None
    std: PositiveChannels | None = None

    @property
    def facts(self) -> NetworkInfo:
        return network(self.network)

    def trains_on(self, data: str) -> bool:
        """Whether it can be trained on a data set: SimCLR needs the images in memory."""
        return self.source != "simclr" or not dataset(data).streamed

    def may_have_seen(self, data: DatasetSpec) -> bool:
        """Whether it was trained elsewhere, perhaps on the training images that are held out here."""
        weights = _weights(self, data)
        return bool(data.val_split and weights and weights.classifier)

    def lacks_classifier(self, data: DatasetSpec, strategy: str) -> str:
        """Why the teacher cannot give class scores under a strategy: without new layers it needs a classifier; or ""."""
        if strategy != "pretrained" or (self.facts.classifier and (self.fine_tune or self.knows(data))):
            return ""
        if not self.facts.classifier:
            return "has no classifier: use strategy sequential or simultaneous"
        there = f"only one for {', '.join(map(str, sorted(self.counts)))} classes" if self.counts else "none"
        return (
            f"needs a classifier for the {data.class_count} classes of {data.name}, and its file holds {there}: use "
            "fine_tune: true, or strategy sequential or simultaneous"
        )

    def knows(self, data: DatasetSpec) -> bool:
        """Whether a file may hold a classifier for a data set's classes; what is no file does."""
        return self.counts is None or data.class_count in self.counts


@dataclass(frozen=True)
class ResolvedTeacher:
    """A run's finished teacher, its new layers that learn during the run, and the teacher's own view."""

    spec: Teacher
    head: HeadSpec | None
    view: Preprocessing | None


def default_teacher(name: str) -> TeacherConfig:
    """The teacher of a bare network name: its published weights, else trained from scratch."""
    return TeacherConfig(name, "published" if network(name).public else "random")


def teacher_config(
    name: str,
    weights: str | None,
    pretraining: str | None,
    folder: Path,
    key: str | None = None,
    *,
    known: Callable[[str], str | None] = lambda _: None,
) -> TeacherConfig:
    """A teacher as a suite describes it. Files are looked for from ``folder`` on. Raises BadInput for what cannot be.

    ``known`` gives the SHA-256 of a file that is not there, where that is known.
    """
    facts = network(name)
    if weights and pretraining:
        raise BadInput("a teacher starts from 'weights' or from 'pretraining', not from both")
    if pretraining:
        if not facts.classifier:
            raise BadInput(f"{name} cannot be trained here, only used with weights from elsewhere")
        return TeacherConfig(name, "simclr")
    if not weights:
        return default_teacher(name)
    published = facts.public.source if facts.public else ""
    if weights == published:
        return TeacherConfig(name, "published")
    if weights == "random":
        if not facts.classifier:
            raise BadInput(f"{name} cannot be trained here: name the file of its weights, or leave 'weights' out")
        return TeacherConfig(name, "random")
    if weights in ("openai", "torchvision"):
        there = f"'{published}' does" if published else "nobody that kdbench knows does"
        raise BadInput(f"'{weights}' publishes no weights of {name}; {there}")
    if match := re.fullmatch(r"sha256:([0-9a-fA-F]{64})", weights):
        return TeacherConfig(name, "file", match[1].lower(), key=key)
    if weights.startswith("sha256:"):
        raise BadInput(f"'{shorten(weights)}': a SHA-256 has 64 hexadecimal digits")
    if sha256 := known(weights):
        return TeacherConfig(name, "file", sha256, key=key)
    path = folder / os.fsdecode(
        os.path.expanduser(weights).encode(errors="surrogateescape")
    )  # in UTF-8, whatever the locale
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "no such file"
        place = f"Give a path from the suite's folder on ({folder.resolve()}), or sha256:…"
        raise BadInput(f"'{shorten(weights)}': {what}. {place}")
    from kdbench.weightfiles.read import (
        class_counts,
        opened,  # most suites name no file
        states,
    )

    try:
        with opened(path) as content:
            counts = class_counts(states(content), facts.embedding, key)
        return TeacherConfig(name, "file", file_hash(path), path, counts=counts, key=key)
    except OSError as error:
        raise BadInput(f"'{weights}' cannot be read: {error.strerror or error}") from None


def resolve_teacher(teacher: TeacherConfig, data: DatasetSpec, strategy: str, settings: Protocol) -> ResolvedTeacher:
    """Resolve a teacher under a protocol.

    Weights for other classes than the data set's lose their classifier; the network is then fine-tuned, an encoder used
    unchanged. A SimCLR network is fine-tuned only under `pretrained`, which needs a classifier.
    """
    name, checkpoint = teacher.network, settings.teacher_checkpoint
    weights = _weights(teacher, data)
    shown = _shown(teacher, data)
    spec: Imported | SelfSupervised | Supervised | FineTuned
    tuned = strategy == "pretrained"
    if weights:
        spec = Imported(network=name, weights=weights, dataset=data.whole if weights.classifier else None)
        tuned = _is_tuned(teacher, weights)
    elif teacher.source == "simclr":
        spec = SelfSupervised(network=name, dataset=data, pretraining=settings.pretraining_spec(name, data.name))
    else:
        recipe = settings.teacher_recipe(name, data.name)
        spec = Supervised(network=name, dataset=data, recipe=recipe, checkpoint=checkpoint)
    if tuned and not isinstance(spec, Supervised):
        recipe = settings.fine_tune_recipe(name, data.name, shown)
        spec = FineTuned(parent=spec, dataset=data, recipe=recipe, checkpoint=checkpoint)
    head = settings.head_spec(data.name, simultaneous=strategy == "simultaneous", view=shown)
    own = settings.teacher_view == "own" or shown is not None
    if strategy == "pretrained" or head is None:
        seen = (
            spec.recipe if isinstance(spec, Supervised | FineTuned) else settings.teacher_recipe(name, data.name, shown)
        )
        return ResolvedTeacher(spec, None, seen.preprocessing if own else None)
    view = head.recipe.preprocessing if own else None
    if strategy == "simultaneous":
        return ResolvedTeacher(spec, head, view)
    return ResolvedTeacher(NewLayers(parent=spec, dataset=data, head=head, checkpoint=checkpoint), None, view)


def adapters_for(
    teacher: Teacher,
    view: Preprocessing | None,
    student: str,
    data: DatasetSpec,
    terms: tuple[WeightedTerm, ...],
    settings: Protocol,
) -> tuple[Adapter, ...]:
    """The adapters of terms on a finished teacher, trained on all training images and clean labels."""
    return tuple(
        Adapter(
            parent=teacher,
            dataset=data,
            term=use.name,
            hyperparameters={key: value for key, value in use.hyperparameters.items() if key in names},
            version=use.version,
            source_sha256=use.source_sha256,
            recipe=settings.part_recipe(use.name, student, data.name, view),
        )
        for use in terms
        if (names := term(use.name).part) is not None
    )


def _is_tuned(teacher: TeacherConfig, weights: Weights) -> bool:
    known = weights.classifier or teacher.source == "file"
    return teacher.facts.classifier and (teacher.fine_tune or not known)


def _weights(teacher: TeacherConfig, data: DatasetSpec) -> Weights | None:
    public = teacher.facts.public
    if teacher.source == "published" and public:
        return Weights(source=public.source, classifier=teacher.facts.classifier and public.classes == data.class_count)
    if teacher.source == "file":
        own = teacher.facts.classifier and teacher.knows(data)
        return Weights(
            source="file",
            sha256=teacher.sha256,
            classifier=own,
            key=teacher.key,
            mean=teacher.mean,
            std=teacher.std,
        )
    return None


def _shown(teacher: TeacherConfig, data: DatasetSpec) -> Changes | None:
    """The preprocessing that imported weights need, if it differs from the data set's own."""
    public = teacher.facts.public
    own = {key: value for key in ("mean", "std") if (value := getattr(teacher, key))}
    if public is None or (teacher.facts.classifier and teacher.source != "published"):
        return own or None
    if teacher.facts.classifier and public.size == data.image_size:
        return None
    return {"size": public.size, "mean": public.mean, "std": public.std, **own}
