"""The shape of a suite file. Names are checked against the catalogue; what depends on several keys is checked later."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictStr

from kdbench.suite.fields import as_list, known_dataset, known_network
from kdbench.suite.specs import DatasetSpec, Name, PositiveInt, Scenario, Strategy


class Schema(BaseModel):
    """A part of a suite file: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


NetworkName = Annotated[StrictStr, AfterValidator(known_network)]


class DatasetEntry(DatasetSpec):
    """A data set by name, or with the part of it that is used."""

    name: Annotated[Name, AfterValidator(known_dataset)]


class MethodEntry(Schema):
    """A method by name, or written on the spot as a weighted sum of terms."""

    name: Name | None = None
    terms: dict[str, Any] | None = None


class Pair(Schema):
    """A teacher and a student that belong together."""

    teacher: NetworkName
    student: NetworkName


class Selector(Schema):
    """Some of a grid's axes, to leave runs out or to add them."""

    teacher: Annotated[tuple[NetworkName, ...] | None, BeforeValidator(as_list)] = None
    student: Annotated[tuple[NetworkName, ...] | None, BeforeValidator(as_list)] = None
    method: Annotated[tuple[Name, ...] | None, BeforeValidator(as_list)] = None
    dataset: Annotated[tuple[Name, ...] | None, BeforeValidator(as_list)] = None
    strategy: Annotated[tuple[Strategy, ...] | None, BeforeValidator(as_list)] = None


def _pair(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2:
        return {"teacher": value[0], "student": value[1]}
    return value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Datasets = Annotated[tuple[Annotated[DatasetEntry, BeforeValidator(_named)], ...], BeforeValidator(as_list)]
Strategies = Annotated[tuple[Strategy, ...], BeforeValidator(as_list)]
Scenarios = Annotated[tuple[Scenario, ...], BeforeValidator(as_list)]


class Shared(Schema):
    """What may stand at the top of a suite, for all its grids, or in one grid."""

    protocol: StrictStr | dict[str, Any] | None = None
    dataset: Datasets = ()
    strategy: Strategies = ("pretrained",)
    scenario: Scenarios = (Scenario(),)
    trials: PositiveInt | None = None


class GridEntry(Shared):
    """One grid: the product of its axes. Networks come as ``teacher`` × ``student`` or as explicit ``pairs``."""

    teacher: Annotated[tuple[NetworkName, ...], BeforeValidator(as_list)] = ()
    student: Annotated[tuple[NetworkName, ...], BeforeValidator(as_list)] = ()
    pairs: tuple[Annotated[Pair, BeforeValidator(_pair)], ...] = ()
    method: Annotated[tuple[Annotated[MethodEntry, BeforeValidator(_named)], ...], BeforeValidator(as_list)]
    include: tuple[Selector, ...] = ()
    exclude: tuple[Selector, ...] = ()


class SuiteHead(Shared):
    """A suite file without its grids."""

    name: StrictStr | None = None
    description: StrictStr = ""
    methods: dict[str, Any] = {}
    grid: Any = None
