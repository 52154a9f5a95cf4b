"""Teachers by name, resolved to the stages that make them on a data set; and the specs of the runs that they teach."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from kdbench.catalogue.networks import NetworkInfo
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import shorten
from kdbench.errors import BadInput
from kdbench.files import file_hash
from kdbench.suite.components import Channels, PositiveChannels, canonical_text, hashed
from kdbench.suite.methods import Terms, auxiliary_method, in_bf16, reads_teacher
from kdbench.suite.networks import info
from kdbench.suite.protocol import Changes, Protocol
from kdbench.suite.specs import (
    Adapter,
    DatasetSpec,
    FineTuned,
    HeadSpec,
    Imported,
    Network,
    NewLayers,
    Preprocessing,
    Recipe,
    RunSpec,
    Scenario,
    SelfSupervised,
    StudentOf,
    Supervised,
    Teacher,
    Weights,
    seen_as,
)


Source = Literal["random", "published", "file", "simclr", "run"]


@dataclass(frozen=True)
class TeacherConfig:
    """A network and the source of its weights.

    ``file`` is a user's file, identified by its ``sha256``; ``run`` is a finished run, whose student this is. ``counts`` are
    the class counts for which the weights may hold a classifier, None if that is not known or they are fresh. ``fine_tune``
    says whether they are trained further, None leaves that to ``tunes``. ``key``, ``mean`` and ``std`` are those of
    ``Weights``.
    """

    network: Network
    source: Source
    sha256: str | None = None
    file: Path | None = None
    fine_tune: bool | None = None
    counts: frozenset[int] | None = None
    key: str | None = None
    mean: Channels | None = None
    std: PositiveChannels | None = None
    run: RunSpec | None = None

    @property
    def info(self) -> NetworkInfo:
        return info(self.network)

    def may_have_seen(self, data: DatasetSpec) -> bool:
        """Whether it was trained elsewhere, perhaps on the training images that are held out here."""
        if self.run:
            return data.val_split not in (None, self.run.dataset.val_split)
        weights = self.weights(data)
        return bool(data.val_split and weights and weights.classifier)

    def knows(self, data: DatasetSpec) -> bool:
        """Whether the weights may hold a classifier for a data set's classes, which is then kept; any other is dropped."""
        return self.info.classifier and (self.counts is None or data.class_count in self.counts)

    def tunes(self, data: DatasetSpec, strategy: str) -> bool:
        """Whether the whole network is trained further on a data set.

        Where the suite does not say so, that is done with published weights that lose their classifier, and with pre-trained
        ones under `pretrained`. What is trained here from fresh weights, an encoder and a run's student are used as they are.
        """
        if self.source in ("random", "run") or not self.info.classifier:
            return False
        if self.fine_tune is not None:
            return self.fine_tune
        return (
            strategy == "pretrained" if self.source == "simclr" else self.source == "published" and not self.knows(data)
        )

    def lacks_classifier(self, data: DatasetSpec, strategy: str) -> str:
        """Why the teacher cannot give class scores under a strategy: without new layers it needs a classifier; or ""."""
        if strategy != "pretrained" or self.knows(data) or self.tunes(data, strategy):
            return ""
        if not self.info.classifier:
            return "has no classifier: use strategy sequential or simultaneous"
        if self.run:
            trained = self.run.dataset
            return (
                f"tells the {trained.class_count} classes of {trained.name} apart, and {data.name} has {data.class_count}: "
                "use strategy sequential or simultaneous"
            )
        there = f"only one for {', '.join(map(str, sorted(self.counts)))} classes" if self.counts else "none"
        holder = {"file": "its file holds", "published": "its published weights have"}.get(self.source, "SimCLR trains")
        return (
            f"needs a classifier for the {data.class_count} classes of {data.name}, and {holder} {there}: use "
            "fine_tune: true, or strategy sequential or simultaneous"
        )

    def weights(self, data: DatasetSpec) -> Weights | None:
        """The weights from elsewhere that it starts from, if any; with their classifier where that fits the data set."""
        if self.source == "published" and self.info.public:
            return Weights(source=self.info.public.source, classifier=self.knows(data))
        if self.source == "file":
            kept: dict[str, Any] = {key: getattr(self, key) for key in ("sha256", "key", "mean", "std")}
            return Weights(source="file", classifier=self.knows(data), **kept)
        return None

    def view(self, data: DatasetSpec, usual: Preprocessing) -> Changes | None:
        """The preprocessing that the weights need, if not the data set's own, or of a run's student not the ``usual``."""
        if self.run:
            seen = seen_as(self.run.dataset, self.run.recipe)
            return seen if seen != seen_as(data, usual) else None
        public = self.info.public
        own = {key: value for key in ("mean", "std") if (value := getattr(self, key))}
        encoder = not self.info.classifier or (self.source == "file" and public and not public.classes)
        if public is None or (not encoder and self.source != "published"):
            return fixed_size(self.network, data.image_size) | own or None
        if self.info.classifier and public.size == data.image_size:
            return None
        return {"size": public.size, "mean": public.mean, "std": public.std, **own}


@dataclass(frozen=True)
class ResolvedTeacher:
    """A run's finished teacher, its new layers that learn during the run, and the teacher's own view."""

    spec: Teacher
    head: HeadSpec | None
    view: Preprocessing | None


def fixed_size(network: Network, side: int) -> Changes:
    """The size to which a network from elsewhere has images of ``side`` pixels resized, if it takes none of these."""
    known = info(network)
    return {} if known.bundled or known.size in (None, side) else {"size": known.size}


def default_teacher(network: Network) -> TeacherConfig:
    """The teacher of a bare network name: its published weights, else trained from scratch."""
    return _published(network) if info(network).public else TeacherConfig(network, "random")


def _published(network: Network) -> TeacherConfig:
    public = info(network).public
    return TeacherConfig(network, "published", counts=frozenset([public.classes] if public and public.classes else []))


def student_teacher(stored: dict[str, Any]) -> TeacherConfig:
    """The student of a finished run as a teacher, from the run's stored spec. Raises BadInput for one that is not valid."""
    try:
        run = RunSpec.model_validate(stored)
    except ValidationError:
        raise BadInput("the run's spec.json cannot be read: run its suite again") from None
    info(run.student)
    return TeacherConfig(run.student, "run", run=run, counts=frozenset({run.dataset.class_count}))


def teacher_config(
    name: Network,
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
    facts = info(name)
    if weights and pretraining:
        raise BadInput("a teacher starts from 'weights' or from 'pretraining', not from both")
    if pretraining:
        if not facts.classifier:
            raise BadInput(f"{name} cannot be trained here, only used with weights from elsewhere")
        return TeacherConfig(name, "simclr", counts=frozenset())
    if not weights:
        return default_teacher(name)
    published = facts.public.source if facts.public else ""
    if weights == published:
        return _published(name)
    if weights == "random":
        if not facts.classifier:
            raise BadInput(f"{name} cannot be trained here: name the file of its weights, or leave 'weights' out")
        return TeacherConfig(name, "random")
    if weights in ("openai", "torchvision", "timm"):
        there = f"'{published}' does" if published else "nobody that kdbench knows does"
        raise BadInput(f"'{weights}' publishes no weights of {name}; {there}")
    if match := re.fullmatch(r"sha256:([0-9a-fA-F]{64})", weights):
        return TeacherConfig(name, "file", match[1].lower(), key=key)
    if weights.startswith("sha256:"):
        raise BadInput(f"'{shorten(weights)}': a SHA-256 has 64 hexadecimal digits")
    if sha256 := known(weights):
        return TeacherConfig(name, "file", sha256, key=key)
    encoded = os.path.expanduser(weights).encode(errors="surrogateescape")  # in UTF-8, whatever the locale
    path = folder / os.fsdecode(encoded)
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "no such file"
        place = f"Give a path from the suite's folder on ({folder.resolve()}), or sha256:…"
        raise BadInput(f"'{shorten(weights)}': {what}. {place}")
    from kdbench.weightfiles.read import class_counts, opened, tensors_in  # most suites name no file

    try:
        with opened(path) as content:
            counts = class_counts(tensors_in(content), facts.embedding, key)
        return TeacherConfig(name, "file", file_hash(path), path, counts=counts, key=key)
    except OSError as error:
        raise BadInput(f"'{weights}' cannot be read: {error.strerror or error}") from None


def resolve_teacher(teacher: TeacherConfig, data: DatasetSpec, strategy: str, protocol: Protocol) -> ResolvedTeacher:
    """Resolve a teacher under a protocol.

    Weights for other classes than the data set's lose their classifier; ``TeacherConfig.tunes`` says what is trained further.
    """
    name, checkpoint = teacher.network, protocol.teacher_checkpoint
    weights, shown = teacher.weights(data), teacher.view(data, protocol.recipe(str(name), data))
    spec: Imported | SelfSupervised | Supervised | FineTuned | StudentOf
    if weights:
        spec = Imported(network=name, weights=weights, dataset=data.whole if weights.classifier else None)
    elif teacher.run:
        spec = StudentOf(run=teacher.run)
    elif teacher.source == "simclr":
        spec = SelfSupervised(network=name, dataset=data, pretraining=protocol.pretraining_spec(str(name), data))
    else:
        recipe = protocol.teacher_recipe(str(name), data, fixed_size(name, data.image_size))
        spec = Supervised(network=name, dataset=data, recipe=recipe, checkpoint=checkpoint)
    if teacher.tunes(data, strategy) and isinstance(spec, Imported | SelfSupervised):
        recipe = protocol.teacher_recipe(str(name), data, shown, fine_tune=True)
        spec = FineTuned(parent=spec, dataset=data, recipe=recipe, checkpoint=checkpoint)
    head = protocol.head_spec(data, simultaneous=strategy == "simultaneous", view=shown)
    own = protocol.teacher_view == "own" or shown is not None
    if strategy == "pretrained" or head is None:
        recipe = protocol.teacher_recipe(str(name), data, shown)
        seen = spec.recipe if isinstance(spec, Supervised | FineTuned) else recipe
        return ResolvedTeacher(spec, None, seen.preprocessing if own else None)
    view = head.recipe.preprocessing if own else None
    if strategy == "simultaneous":
        return ResolvedTeacher(spec, head, view)
    return ResolvedTeacher(NewLayers(parent=spec, dataset=data, head=head, checkpoint=checkpoint), None, view)


@dataclass(frozen=True)
class GridPoint:
    """One combination of a grid's axes, before the trials."""

    teacher: str
    student: str
    method: str
    dataset: DatasetSpec
    strategy: str
    scenario: Scenario


def make_spec(
    point: GridPoint,
    student: Network,
    teacher: TeacherConfig | None,
    terms: Terms,
    protocol: Protocol,
    trial: int = 0,
) -> RunSpec:
    """Resolve a combination under a protocol; ``student`` is the network of the point's student.

    A method that reads no teacher has none, so all pairs share its runs.

    Where a term's method trains an auxiliary, that is the teacher: a wider student of the point's teacher, trained under
    the point's own strategy, scenario and trial; it keeps the epoch that the protocol's score names.
    """
    data = point.dataset
    resolved: ResolvedTeacher | None = None
    finished: Teacher | None = None
    if method := auxiliary_method(terms):
        wider = info(student).auxiliary
        run = make_spec(replace(point, student=wider), wider, teacher, protocol.terms[method], protocol, trial)
        finished = StudentOf(run=run.model_copy(update={"checkpoint": protocol.score}))
    elif teacher and reads_teacher(terms):
        resolved = resolve_teacher(teacher, data, point.strategy, protocol)
        finished = resolved.spec
    view = resolved.view if resolved else None
    recipe = student_recipe(point, student, protocol)
    own_precision = finished is not None and protocol.teacher_precision != recipe.precision
    return RunSpec(
        student=student,
        teacher=finished,
        head=resolved.head if resolved else None,
        teacher_view=view,
        teacher_precision=protocol.teacher_precision if own_precision else None,
        teacher_inference=protocol.teacher_inference if finished else None,
        terms=in_bf16(terms) if recipe.precision == "bf16" else terms,
        dataset=data,
        scenario=point.scenario,
        recipe=recipe,
        trial=trial,
        adapters=_adapters(finished, view, point.student, data, terms, protocol) if finished else (),
    )


def student_recipe(point: GridPoint, student: Network, protocol: Protocol) -> Recipe:
    """The recipe of a point's student, with the images' size that its network takes."""
    recipe = protocol.recipe(point.student, point.dataset)
    changes = fixed_size(student, recipe.size or point.dataset.image_size)
    return protocol.recipe(point.student, point.dataset, changes) if changes else recipe


def _adapters(
    teacher: Teacher,
    view: Preprocessing | None,
    student: str,
    data: DatasetSpec,
    terms: Terms,
    protocol: Protocol,
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
            recipe=protocol.part_recipe(use.name, student, data, view),
        )
        for use in terms
        if (names := term(use.name).part) is not None
    )


def make_specs(
    point: GridPoint,
    student: Network,
    teacher: TeacherConfig | None,
    terms: Terms,
    protocol: Protocol,
    trials: int,
) -> list[RunSpec]:
    """The first ``trials`` trials of a combination. What their ids have in common is written out once, for all of them."""
    if auxiliary_method(terms):  # whose trial is the run's
        return [make_spec(point, student, teacher, terms, protocol, trial) for trial in range(trials)]
    spec = make_spec(point, student, teacher, terms, protocol)
    common = {key: canonical_text(value) for key, value in spec.canonical().items()}
    runs = []
    for trial in range(trials):
        run = spec.model_copy(update={"trial": trial})
        texts = {**common, "trial": str(trial)} if trial else common
        run.__dict__["id"] = hashed("{" + ",".join(f'"{key}":{texts[key]}' for key in sorted(texts)) + "}")
        runs.append(run)
    return runs
