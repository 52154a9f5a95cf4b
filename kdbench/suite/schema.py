"""The shape of a suite file. Names are checked against the catalogue; what depends on several keys is checked later."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictBool, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.tables import table_name
from kdbench.errors import BadInput
from kdbench.suite.fields import DatasetName, Keys, NetworkName, StudentName, TeacherName, as_list, not_empty
from kdbench.suite.measurements import ProbeProtocol, named_probe, probe_protocols
from kdbench.suite.recipe import Channels, PositiveChannels
from kdbench.suite.specs import DatasetSpec, Name, PositiveInt, Scenario, Strategy


class Schema(BaseModel):
    """A part of a suite file: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OneOrMany = BeforeValidator(as_list)
NotEmpty = BeforeValidator(not_empty)


class DatasetEntry(DatasetSpec):
    """A data set by name, or with the part of it that is used."""

    name: DatasetName
    stand_in: Literal[False] = False

    @property
    def spec(self) -> DatasetSpec:
        """The data set for a run's spec: all classes, and the images' own size, are the same as no choice of them."""
        whole = dataset(self.name)
        chosen = {"classes": None if self.classes == whole.classes else self.classes}
        chosen["size"] = None if self.size == whole.size else self.size
        return DatasetSpec(**{**self.model_dump(), **chosen})


class MethodEntry(Schema):
    """A method by name, or written on the spot as a weighted sum of terms."""

    name: Annotated[Name | None, NotEmpty] = None
    terms: Any = None


class TeacherEntry(Schema):
    """What a teacher's name stands for: a network, and where its weights come from before the protocol trains it.

    ``weights`` is a file, `sha256:…` of one that was imported, `openai` or `torchvision`, or `random` for none. Weights that
    would be used as they are, classifier and all, are trained on by the protocol's ``fine_tune`` where that is asked for.
    Of a file, ``key`` names the place of the network among several, ``mean`` and ``std`` the normalisation of the images
    that it was trained on.
    """

    network: NetworkName
    weights: Annotated[StrictStr | None, NotEmpty] = None
    pretraining: Annotated[Literal["simclr"] | None, NotEmpty] = None
    fine_tune: StrictBool = False
    key: Annotated[Name | None, NotEmpty] = None
    mean: Annotated[Channels | None, NotEmpty] = None
    std: Annotated[PositiveChannels | None, NotEmpty] = None


class Pair(Schema):
    """A teacher and a student that belong together."""

    teacher: TeacherName
    student: StudentName


class Selector(Schema):
    """Some of a grid's axes, to leave runs out or to add them. An axis that is not named is free."""

    teacher: Annotated[tuple[TeacherName, ...], OneOrMany] = ()
    student: Annotated[tuple[StudentName, ...], OneOrMany] = ()
    method: Annotated[tuple[Name, ...], OneOrMany] = ()
    dataset: Annotated[tuple[DatasetName, ...], OneOrMany] = ()
    strategy: Annotated[tuple[Strategy, ...], OneOrMany] = ()

    @model_validator(mode="after")
    def _selects(self) -> Selector:
        if not self.model_fields_set:
            raise PydanticCustomError("empty", "must name at least one of {keys}", {"keys": ", ".join(SELECTOR_KEYS)})
        return self


SELECTOR_KEYS = tuple(Selector.model_fields)


def _pair(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2:
        return {"teacher": value[0], "student": value[1]}
    if isinstance(value, dict):
        return value
    raise PydanticCustomError("pair", "must be [teacher, student], or {teacher: …, student: …}")


def _named(value: Any) -> Any:
    return value if isinstance(value, dict) or value is None else {"name": value}


def _known_table(name: str) -> str:
    try:
        return table_name(name)
    except BadInput as error:
        raise PydanticCustomError("unknown", "{message}", {"message": str(error)}) from None


Teachers = Annotated[tuple[TeacherName, ...], OneOrMany]
Students = Annotated[tuple[StudentName, ...], OneOrMany]
Datasets = Annotated[tuple[Annotated[DatasetEntry, BeforeValidator(_named)], ...], OneOrMany]
Strategies = Annotated[tuple[Strategy, ...], OneOrMany]
Scenarios = Annotated[tuple[Scenario, ...], OneOrMany]
Methods = Annotated[tuple[Annotated[MethodEntry, BeforeValidator(_named)], ...], OneOrMany]
Selectors = Annotated[tuple[Selector, ...], OneOrMany]
Tables = Annotated[tuple[Annotated[StrictStr, AfterValidator(_known_table)], ...], OneOrMany]


class MeasureEntry(Schema):
    """What is measured on the finished networks of a grid.

    ``probe`` names the data sets on which linear classifiers are trained, as ``probe_protocol`` says; ``similarity`` those on
    whose test images students are compared with their teachers.
    """

    probe: Datasets = ()
    probe_protocol: Annotated[ProbeProtocol, BeforeValidator(named_probe)] = probe_protocols()["linear"]
    similarity: Datasets = ()


class Shared(Schema):
    """What may stand at the top of a suite, for all its grids, or in one grid."""

    protocol: Any = None
    dataset: Datasets = ()
    strategy: Strategies = ("pretrained",)
    scenario: Scenarios = (Scenario(),)
    trials: Annotated[PositiveInt | None, NotEmpty] = None
    measure: MeasureEntry = MeasureEntry()


class GridEntry(Shared):
    """One grid: the product of its axes. Networks come as ``teacher`` × ``student`` or as explicit ``pairs``."""

    teacher: Teachers = ()
    student: Students = ()
    pairs: tuple[Annotated[Pair, BeforeValidator(_pair)], ...] = ()
    method: Methods = ()
    include: Selectors = ()
    exclude: Selectors = ()


class SuiteHead(Shared):
    """A suite file without its grids. ``tables`` are the printed tables that it fills."""

    name: Annotated[Name | None, NotEmpty] = None
    description: StrictStr = ""
    methods: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    tables: Tables = ()
    grid: Any = None


_NESTED: Keys = {
    "dataset": DatasetEntry.model_fields,
    "scenario": Scenario.model_fields,
    "method": MethodEntry.model_fields,
    "measure": MeasureEntry.model_fields,
    "pairs": Pair.model_fields,
    "include": SELECTOR_KEYS,
    "exclude": SELECTOR_KEYS,
}


def keys_of(schema: type[Schema]) -> Keys:
    """The keys that a mapping and its values may have, to find the one that was meant."""
    return {**_NESTED, "": schema.model_fields}
