"""Measurements on finished networks besides accuracy: linear probes, and the similarity of student and teacher."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StrictStr, TypeAdapter

from kdbench.catalogue.text import nearest
from kdbench.suite.components import Preprocessing, Recipe, Variant, late_milestone
from kdbench.suite.specs import DatasetSpec, Stage, StudentOf, Teacher, preprocessing_of, stage_label


BatchNorm = Literal["frozen", "batch"]


class ProbeSpec(Variant):
    """A linear classifier of ``dataset`` on the frozen backbone of ``source``, trained by ``recipe``.

    ``batch_norm`` is what the backbone's batch norms do meanwhile: nothing (`frozen`), or what they do in training
    (`batch`): normalise by the batch, and let their running statistics drift to the new images.
    """

    kind: Literal["probe"] = "probe"
    source: Annotated[Teacher, Field(discriminator="kind")]
    dataset: DatasetSpec
    recipe: Recipe
    batch_norm: BatchNorm = "frozen"

    @property
    def dependencies(self) -> tuple[Stage, ...]:
        return (self.source,)

    @property
    def fixed_features(self) -> bool:
        """Whether the backbone sees each image once and for all."""
        return self.batch_norm == "frozen" and not self.recipe.crop_padding and not self.recipe.flip

    @property
    def label(self) -> str:
        return f"linear probe on {self.dataset.name}: {name_of(self.source)}"


class SimilaritySpec(Variant):
    """The similarity of a run's student (``source``) and its teacher on the test images of ``dataset``.

    Each sees them by its own view. ``teacher`` is None where the teacher's new layers learned beside the student: it is then
    the teacher as it was when the run ended.
    """

    kind: Literal["similarity"] = "similarity"
    source: StudentOf
    dataset: DatasetSpec
    student_view: Preprocessing
    teacher: Annotated[Teacher, Field(discriminator="kind")] | None = None
    teacher_view: Preprocessing

    @property
    def dependencies(self) -> tuple[Stage, ...]:
        teacher = self.teacher or self.source.run.teacher
        return (self.source, *([teacher] if teacher else ()))

    @property
    def label(self) -> str:
        return f"similarity to the teacher on {self.dataset.name}: {name_of(self.source)}"


_ANY: TypeAdapter[ProbeSpec | SimilaritySpec] = TypeAdapter(
    Annotated[ProbeSpec | SimilaritySpec, Field(discriminator="kind")]
)


def measurement_from(value: Any) -> ProbeSpec | SimilaritySpec:
    """A measurement's spec from its JSON. Raises pydantic's ValidationError."""
    return _ANY.validate_python(value)


class ProbeProtocol(Recipe):
    """The recipe of linear classifiers on frozen backbones."""

    title: StrictStr
    batch_norm: BatchNorm = "frozen"


@cache
def probe_protocols() -> dict[str, ProbeProtocol]:
    """The bundled ways to train a linear probe, by name."""
    text = files("kdbench.suite").joinpath("probes.yaml").read_text(encoding="utf-8")
    return {name: ProbeProtocol.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


_PROBE_KEYS = ProbeProtocol.model_fields.keys() - {"mean", "std", "size", "node_embedding"}


def named_probe(value: Any) -> Any:
    """A bundled way to train a probe by name, or ``{base: NAME, …changes}`` of one, for pydantic to validate."""
    changes = dict(value) if isinstance(value, dict) else {"base": value}
    name = changes.pop("base", None)
    for key in changes.keys() - _PROBE_KEYS:
        near = nearest(str(key), _PROBE_KEYS)
        hint = f"Did you mean '{near}'?" if near else f"Known keys: base, {', '.join(sorted(_PROBE_KEYS))}."
        own = key in ProbeProtocol.model_fields
        why = "comes from the network that is probed" if own else "is no key of a probe protocol"
        raise ValueError(f"'{key}' {why}. {hint}")
    if not isinstance(name, str) or name not in probe_protocols():
        known = ", ".join(probe_protocols())
        raise ValueError(f"no such way to train a probe: '{name}'. Name one of {known}, or {{base: NAME, …changes}}")
    whole = {**probe_protocols()[name].model_dump(), **changes}
    if "batch_norm_parts" in changes and whole["batch_norm"] == "frozen":
        raise ValueError(
            "'batch_norm_parts' divides a batch where batch norms train, and under batch_norm: frozen none does. "
            "Leave it out, or set batch_norm: batch"
        )
    if message := late_milestone(changes.get("milestones"), whole["epochs"]):
        raise ValueError(message)
    return whole


def probe(source: Teacher, data: DatasetSpec, how: ProbeProtocol) -> ProbeSpec:
    """A probe of a network on another data set, with the image size and normalisation of its own training."""
    seen = view_of(source)
    recipe = how.model_dump(include=set(Recipe.model_fields))
    native, wanted = data.facts.size, seen.size or data.image_size
    at = data.model_copy(update={"size": wanted if wanted < native else None})  # larger ones would fill the memory
    recipe |= {"mean": seen.mean, "std": seen.std, "size": wanted if wanted > native else None}
    return ProbeSpec(source=source, dataset=at, recipe=Recipe(**recipe), batch_norm=how.batch_norm)


def similarity(
    student: StudentOf, teacher: Teacher | None, shown: Preprocessing | None, data: DatasetSpec
) -> SimilaritySpec:
    """A comparison of student and teacher. ``shown`` is the teacher's own view; None: it sees the student's images."""
    seen = view_of(student)
    return SimilaritySpec(
        source=student,
        dataset=data,
        student_view=seen,
        teacher=teacher,
        teacher_view=_whole(shown, student.dataset) if shown else seen,
    )


def view_of(network: Teacher) -> Preprocessing:
    """The test preprocessing of a finished network: size and normalisation of its own training, made explicit."""
    if network.dataset is None:
        raise ValueError("the network was trained on no data set")
    return _whole(preprocessing_of(network), network.dataset)


def _whole(view: Preprocessing, data: DatasetSpec) -> Preprocessing:
    own = data.facts
    return Preprocessing(size=view.size or data.image_size, mean=view.mean or own.mean, std=view.std or own.std)


def name_of(network: Teacher) -> str:
    """A network in a few words."""
    if not isinstance(network, StudentOf):
        return stage_label(network)
    run = network.run
    taught = f" of {run.teacher.network}" if run.teacher else ""
    return f"{run.student}{taught} (run {run.id}, trial {run.trial})"
