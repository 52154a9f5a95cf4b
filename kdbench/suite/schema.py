"""The schema of a suite file, and its building blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictStr,
    ValidationInfo,
    model_validator,
)

from kdbench.catalogue.datasets import dataset, datasets
from kdbench.catalogue.networks import network, networks
from kdbench.catalogue.tables import table_name
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import unknown
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput
from kdbench.suite.components import Channels, ImageSize, Name, PositiveChannels, PositiveInt
from kdbench.suite.measurements import ProbeProtocol, named_probe, probe_protocols
from kdbench.suite.plain_errors import Keys
from kdbench.suite.specs import DatasetSpec, Scenario, Strategy


def as_list(value: Any) -> Any:
    """Let a single value stand for a list of one; an empty list is refused."""
    if isinstance(value, list) and not value:
        raise ValueError("is an empty list: name at least one, or leave the key out")
    return value if isinstance(value, list | tuple) or value is None else [value]


def _not_empty(value: Any) -> Any:
    """Refuse a key without a value, for which None would mean the default."""
    if value is None:
        raise ValueError("is empty")
    return value


def _canonical(look_up: Callable[[str], str]) -> AfterValidator:
    """Replace a name by the one that ``look_up`` returns; its BadInput becomes the problem."""

    def validate(name: str) -> str:
        try:
            return look_up(name)
        except BadInput as error:
            raise ValueError(str(error)) from None

    return AfterValidator(validate)


def _part(name: str) -> str:
    if term(name).part is None:
        raise BadInput(f"the term '{term(name).name}' trains nothing on the teacher first")
    return term(name).name


def _network(name: str, info: ValidationInfo) -> str:
    """A network's canonical name: one of the suite's own (in the validation context), or the catalogue's."""
    context = info.context or {}
    try:
        if "networks" in context:
            return str(context["networks"].name(name))
        return name if ":" in name else network(name).name  # of protocols, which build no network
    except BadInput as error:
        raise ValueError(str(error)) from None


def _dataset(name: str, info: ValidationInfo) -> str:
    """A data set's canonical name: one of the suite's own (in the validation context), or the catalogue's."""
    own = (info.context or {}).get("datasets", {})
    if name in own:
        return name
    try:
        return dataset(name).name
    except BadInput:
        raise ValueError(unknown("dataset", name, [*own, *datasets()], "datasets")) from None


def _student(name: str, info: ValidationInfo) -> str:
    known = _network(name, info)
    if known in networks() and not networks()[known].classifier:
        raise ValueError(f"{known} is an encoder for teachers: it has no classes to train for")
    return known


def _teacher(name: str, info: ValidationInfo) -> str:
    """One of the suite's own teachers (in the validation context), or a network's canonical name."""
    context = info.context or {}
    own = context["teachers"]
    if name in own:
        return name
    try:
        return _network(name, info)
    except ValueError:
        if ":" in name or not context:
            raise
        message = unknown("teacher", name, context["among"]([*own, *context["networks"].own, *networks()]), "models")
        raise ValueError(message) from None


NetworkName = Annotated[StrictStr, AfterValidator(_network)]
StudentName = Annotated[StrictStr, AfterValidator(_student)]
TeacherName = Annotated[StrictStr, AfterValidator(_teacher)]
DatasetName = Annotated[StrictStr, AfterValidator(_dataset)]
PartName = Annotated[StrictStr, _canonical(_part)]
TableName = Annotated[StrictStr, _canonical(table_name)]


class Schema(BaseModel):
    """A part of a suite file: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], BeforeValidator(as_list)]
NotEmpty = BeforeValidator(_not_empty)


class DatasetEntry(DatasetSpec):
    """A data set by name, or with the part of it that is used."""

    name: DatasetName
    stand_in: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _with_images(cls, value: Any, info: ValidationInfo) -> Any:
        own = (info.context or {}).get("datasets", {})
        if isinstance(value, dict) and "images" in value:
            raise ValueError("unknown key 'images': images of your own are named in the suite's key 'datasets'")
        if isinstance(value, dict) and isinstance(name := value.get("name"), str) and name in own:
            return {**value, "images": own[name]}
        return value

    @property
    def spec(self) -> DatasetSpec:
        """The data set for a run's spec: all classes, and the images' own size, are the same as no choice of them."""
        whole = self.facts
        same = {key: None for key in ("classes", "size") if getattr(self, key) == getattr(whole, key)}
        return DatasetSpec(**{**self.model_dump(), "name": self.name, **same})


class MethodEntry(Schema):
    """A method by name, or written on the spot as a weighted sum of terms."""

    name: Annotated[Name | None, NotEmpty] = None
    terms: Any = None


IMAGE_KINDS: tuple[Literal["folder", "csv", "npz", "huggingface"], ...] = ("folder", "csv", "npz", "huggingface")


class ImagesEntry(Schema):
    """A suite's own data set: a ``folder`` of classes, a table of files (``csv``), a NumPy file (``npz``), or a
    folder that Hugging Face's datasets has saved (``huggingface``).

    A folder has `train/` and `test/` (or `val/`) with a folder for each class, or these alone: then ``test_split`` is the
    share of each class that is held out for tests. Pictures become ``size`` × ``size`` pixels. Files that cannot be decoded
    are refused, or left out with ``skip_unreadable``. They are decoded once into memory, or, with ``stream`` and where that
    is too small, anew in each epoch.
    """

    folder: Annotated[StrictStr | None, NotEmpty] = None
    csv: Annotated[StrictStr | None, NotEmpty] = None
    npz: Annotated[StrictStr | None, NotEmpty] = None
    huggingface: Annotated[StrictStr | None, NotEmpty] = None
    size: Annotated[ImageSize | None, NotEmpty] = None
    test_split: Annotated[StrictFloat | None, Field(gt=0.0, lt=1.0), NotEmpty] = None
    skip_unreadable: StrictBool = False
    stream: StrictBool | None = None

    @model_validator(mode="after")
    def _one_place(self) -> ImagesEntry:
        if sum(getattr(self, kind) is not None for kind in IMAGE_KINDS) != 1:
            raise ValueError("name one place: a folder, a csv, an npz or a folder of huggingface")
        if self.npz and self.stream:
            raise ValueError("an npz is read into memory: leave 'stream' out, or save the images as files")
        return self

    def source(self, beside: Path) -> ImageSource:
        """The source, whose path is looked for from the folder ``beside`` on."""
        kind = next(kind for kind in IMAGE_KINDS if getattr(self, kind) is not None)
        path = os.path.abspath(beside / os.path.expanduser(str(getattr(self, kind))))
        return ImageSource(kind, path, self.size, self.test_split, self.skip_unreadable, self.stream)


class NetworkEntry(Schema):
    """A suite's own network: the function or class that builds it, and where its maps are read.

    ``build`` is `package.module:name` of a module beside the suite or installed, `timm:NAME` or `torchvision:NAME`. It is
    called with ``arguments`` and the number of classes, as `classes` or `num_classes`. ``maps`` are the names of the modules
    that give the stem's feature map and one map per stage, ``embedding`` that of the module that gives the embedding (by
    default the input of the classifier), ``size`` the only side of images, in pixels, that it takes. What is left out is
    found in a forward pass.
    """

    build: Name
    arguments: dict[StrictStr, Any] = {}
    maps: Annotated[Many[Name] | None, NotEmpty] = None
    embedding: Annotated[Name | None, NotEmpty] = None
    size: Annotated[ImageSize | None, NotEmpty] = None


class TeacherEntry(Schema):
    """A suite's own teacher: a network and the source of its initial weights, or the student of a finished ``run``.

    ``run`` is the run's id, or how it begins, in the results folder; its student teaches as it is.
    ``weights`` is a file, `sha256:…` of one that was imported, `openai` or `torchvision`, or `random` for none. ``fine_tune``
    says whether they are trained further, by the protocol's recipe for that. Of a file, ``key`` names the place of the
    network among several, ``mean`` and ``std`` the normalisation of the images that it was trained on.
    """

    network: Annotated[NetworkName | None, NotEmpty] = None
    run: Annotated[Name | None, NotEmpty] = None
    weights: Annotated[StrictStr | None, NotEmpty] = None
    pretraining: Annotated[Literal["simclr"] | None, NotEmpty] = None
    fine_tune: Annotated[StrictBool | None, NotEmpty] = None
    key: Annotated[Name | None, NotEmpty] = None
    mean: Annotated[Channels | None, NotEmpty] = None
    std: Annotated[PositiveChannels | None, NotEmpty] = None

    @model_validator(mode="after")
    def _one_source(self) -> TeacherEntry:
        if self.run is None and self.network is None:
            raise ValueError("'network' is missing (or 'run', the id of a finished run whose student teaches)")
        if self.run and self.model_fields_set != {"run"}:
            raise ValueError("a run's student teaches as it is: leave out all keys but 'run'")
        return self


class Pair(Schema):
    """A teacher and a student that belong together."""

    teacher: TeacherName
    student: StudentName


class Selector(Schema):
    """Some of a grid's axes, to leave runs out or to add them. An axis that is not named is free."""

    teacher: Many[TeacherName] = ()
    student: Many[StudentName] = ()
    method: Many[Name] = ()
    dataset: Many[DatasetName] = ()
    strategy: Many[Strategy] = ()

    @model_validator(mode="after")
    def _selects(self) -> Selector:
        if not self.model_fields_set:
            raise ValueError(f"must name at least one of {', '.join(SELECTOR_KEYS)}")
        return self


SELECTOR_KEYS = tuple(Selector.model_fields)


def _pair(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2:
        return {"teacher": value[0], "student": value[1]}
    if isinstance(value, dict):
        return value
    raise ValueError("must be [teacher, student], or {teacher: …, student: …}")


def _named(value: Any) -> Any:
    return value if isinstance(value, dict) or value is None else {"name": value}


Datasets = Many[Annotated[DatasetEntry, BeforeValidator(_named)]]


class MeasureEntry(Schema):
    """The measurements on the finished networks of a grid.

    ``probe`` names the data sets on which linear classifiers are trained, as ``probe_protocol`` says; ``similarity`` those on
    whose test images students are compared with their teachers.
    """

    probe: Datasets = ()
    probe_protocol: Annotated[ProbeProtocol, BeforeValidator(named_probe)] = probe_protocols()["linear"]
    similarity: Datasets = ()


class Shared(Schema):
    """The keys that a suite may set for all its grids, or a grid for itself."""

    protocol: Any = None
    dataset: Datasets = ()
    strategy: Many[Strategy] = ("pretrained",)
    scenario: Many[Scenario] = (Scenario(),)
    trials: Annotated[PositiveInt | None, NotEmpty] = None
    measure: MeasureEntry = MeasureEntry()


class GridEntry(Shared):
    """One grid: the product of its axes. Networks come as ``teacher`` × ``student`` or as explicit ``pairs``."""

    teacher: Many[TeacherName] = ()
    student: Many[StudentName] = ()
    pairs: tuple[Annotated[Pair, BeforeValidator(_pair)], ...] = ()
    method: Many[Annotated[MethodEntry, BeforeValidator(_named)]] = ()
    include: Many[Selector] = ()
    exclude: Many[Selector] = ()


def device_count(value: Any) -> int:
    """How many devices train a run together; 0 for ``auto``. Raises ValueError for anything else."""
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise ValueError("write auto, or a number from 1 to 64")
    return value


class SuiteHead(Shared):
    """A suite file without its grids. ``tables`` are the printed tables that it fills."""

    name: Annotated[Name | None, NotEmpty] = None
    description: StrictStr = ""
    methods: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    networks: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    tables: Many[TableName] = ()
    devices_per_run: Annotated[int, BeforeValidator(device_count)] = 1
    grid: Any = None


_DATASET_KEYS = DatasetEntry.model_fields.keys() - {"stand_in", "images"}
_NESTED: Keys = {
    "dataset": _DATASET_KEYS,
    "scenario": Scenario.model_fields,
    "method": MethodEntry.model_fields,
    "measure": MeasureEntry.model_fields,
    "probe": _DATASET_KEYS,
    "similarity": _DATASET_KEYS,
    "pairs": Pair.model_fields,
    "include": SELECTOR_KEYS,
    "exclude": SELECTOR_KEYS,
}


def keys_of(schema: type[Schema]) -> Keys:
    """The keys that a mapping and its values may have, to find the one that was meant."""
    return {**_NESTED, "": schema.model_fields}
