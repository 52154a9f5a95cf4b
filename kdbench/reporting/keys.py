"""How tables name a run: the key that it shares with published numbers, and the labels of its data set and scenario."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple, cast

import pandas as pd

from kdbench.catalogue.tables import layouts
from kdbench.catalogue.terms import term
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import DatasetSpec, Scenario, WeightedTerm
from kdbench.suite.suite import TINY, Run


KEY = ["paper", "method", "teacher", "student", "dataset", "strategy", "setting", "metric"]
"""The columns that identify a number, in the terms of reference.csv; ``canonical`` gives them one spelling."""

GROUP = ["suite", "protocol", "dataset", "scenario", "strategy"]
"""The runs of one grid table have these columns in common."""

CELL = ["method", "teacher", "student"]
"""The columns that the trials of one cell of a grid table have in common."""

_PLAIN = {"student", "baseline", "ce"}
_DEFAULTS = {"fewshot=1", "noise=0"}


def canonical(keys: pd.DataFrame) -> pd.DataFrame:
    """One spelling for equal keys: the plain student has no teacher, the teacher no student."""
    plain, teacher = keys["method"].isin(_PLAIN), keys["method"] == "teacher"
    return keys.assign(
        method=keys["method"].mask(plain, "ce"),
        teacher=keys["teacher"].mask(plain, ""),
        student=keys["student"].mask(teacher, ""),
        strategy=keys["strategy"].mask(plain | teacher, ""),
        setting=[canonical_setting(setting) for setting in keys["setting"]],
    )


def grouped(frame: pd.DataFrame, by: list[str]) -> dict[tuple[str, ...], pd.DataFrame]:
    """The rows of each group, in order of appearance."""
    return {cast("tuple[str, ...]", key): rows for key, rows in frame.groupby(by, sort=False)}


def tuples(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """One tuple per row."""
    return list(frame.itertuples(index=False, name=None))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping per row, by column."""
    columns = {str(name): values.tolist() for name, values in frame.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@lru_cache(maxsize=4096)
def canonical_setting(setting: str) -> str:
    """``noise=0.10,fewshot=1.0`` as ``noise=0.1``: sorted, numbers in one spelling, without default values."""
    parts = {_canonical_part(part.strip()) for part in setting.split(",") if part.strip()}
    return ",".join(sorted(parts - _DEFAULTS))


def _canonical_part(part: str) -> str:
    key, _, value = part.partition("=")
    try:
        return f"{key.strip()}={float(value):g}"
    except ValueError:
        return f"{key.strip()}={value.strip()}"


def scenario_setting(scenario: Scenario, paper: str | None) -> str:
    """A scenario as the reference spells it: ``fewshot=0.25``, ``noise=0.1``; empty without one.

    Wrong labels that are drawn otherwise than under the protocol of the ``paper`` say how: ``labels=classes``.
    """
    parts = [f"fewshot={scenario.fraction:g}"] if scenario.fraction < 1 else []
    parts += [f"noise={scenario.label_noise:g}"] if scenario.label_noise > 0 else []
    if scenario.label_noise > 0 and scenario.noise != _NOISE.get(paper or "", "other"):
        parts.append(f"labels={scenario.noise}")
    return ",".join(parts)


_NOISE = {"semckd": "all"}
"""How the papers' protocols draw wrong labels, where not from the other classes."""


def split_method(name: str) -> tuple[str, str]:
    """``ega-no-edge[node_weight=1.2]`` as the method and the values of a sweep: ``ega-no-edge``, ``node_weight=1.2``."""
    method, bracket, varied = name.partition("[")
    if not bracket or not varied.endswith("]") or "=" not in varied or not method:
        return name, ""
    return method, varied[:-1]


def tiny_paper(paper: str) -> str:
    """The paper in the keys of tiny runs, so that none of these equals a published number's."""
    return TINY + paper if paper else ""


def teacher_paper_of(run: Run) -> str:
    """The paper whose protocol trains the run's teacher unchanged, or ""."""
    if run.original:
        return tiny_paper(teacher_paper_of(run.original))
    return (run.protocol.paper or "") if run.protocol.name == run.protocol.base else ""


def paper_of(run: Run) -> str:
    """The paper whose protocol trains the method unchanged, or ""; a sweep's method has its terms with other values."""
    if run.original:
        return tiny_paper(paper_of(run.original))
    protocol, terms = run.protocol, run.spec.terms
    name, varied = split_method(run.method)
    if varied:
        known = bundled_protocol(protocol.base).terms.get(name, ())
        alike = protocol.as_published(name, known) and [use.name for use in known] == [use.name for use in terms]
        alike = alike and _varies_as_named(varied, terms)
    else:
        alike = protocol.as_published(name, terms)
    return (protocol.paper or "") if alike else ""


def _varies_as_named(varied: str, terms: Sequence[WeightedTerm]) -> bool:
    """Whether a method's terms have the values in its name's brackets, of what the papers' sweeps vary."""
    real: dict[str, Any] = {}
    for use in terms:
        if use.name in ("ega", "sskd"):
            defaults = {name: each.default for name, each in term(use.name).hyperparameters.items()}
            value = {**defaults, **use.hyperparameters}
            if use.name == "ega":
                real |= {"node_weight": use.weight * value["node"], "edge_weight": use.weight * value["edge"]}
            else:
                real |= {"topk": 100 * value["kept_pretext"], "ss_task": value["pretext"]}
    named = dict(part.partition("=")[::2] for part in canonical_setting(varied).split(","))
    return all(canonical_setting(f"{key}={real[key]}") == f"{key}={named[key]}" for key in named.keys() & real.keys())


def terms_text(terms: Sequence[WeightedTerm]) -> str:
    """``{"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}``, with default hyperparameters."""
    described = {}
    for use in terms:
        defaults = {name: each.default for name, each in term(use.name, use.source_sha256).hyperparameters.items()}
        described[use.name] = {"weight": use.weight, **defaults, **use.hyperparameters}
    return json.dumps(described, ensure_ascii=False)


@cache
def dataset_label(spec: DatasetSpec) -> str:
    """``cifar100``, or ``cifar100 (20 classes, 100 + 50 images each)`` for a part of it.

    It also says where accuracies are measured on a part of the training set.
    """
    parts = []
    if spec.classes or spec.train_per_class or spec.test_per_class:
        whole = spec.facts
        train, test = spec.split(whole.train // whole.classes, whole.test // whole.classes)
        images = f"{spec.train_per_class or train} + {spec.test_per_class or test} images each"
        parts.append(f"{spec.classes or whole.classes} classes, {images}")
    if spec.size:
        parts.append(f"{spec.size} × {spec.size} pixels")
    if spec.val_split:
        parts.append(f"{_VALIDATION}{100 * spec.val_split:g} % of the training set")
    return f"{spec.name} ({'; '.join(parts)})" if parts else spec.name


_VALIDATION = "validation: "


def measured_on(label: str) -> str:
    """The images on which the accuracies of a data set with this label are measured: ``test`` or ``validation``."""
    return "validation" if _VALIDATION in label else "test"


def scenario_label(scenario: Scenario) -> str:
    """The changes to the training set in words; empty for none."""
    parts = []
    if scenario.fraction < 1:
        parts.append(f"{100 * scenario.fraction:g}% of the images")
    if scenario.label_noise > 0:
        parts.append(f"{100 * scenario.label_noise:g}% {_NOISE_LABELS[scenario.noise]}")
    return ", ".join(parts)


_NOISE_LABELS = {
    "other": "label noise (over the other classes)",
    "all": "label noise (over all classes)",
    "classes": "of the classes renamed",
}


Pair = tuple[str, str]
"""Teacher, or "", and student."""


def pair_text(pair: Iterable[str]) -> str:
    """``teacher → student``."""
    return " → ".join(name for name in pair if name)


class Group(NamedTuple):
    """The GROUP of one grid table."""

    suite: str
    protocol: str
    dataset: str
    scenario: str
    strategy: str

    @property
    def title(self) -> str:
        parts = [self.dataset, self.scenario, f"{self.strategy} teacher"]
        return f"{self.suite}: {', '.join(part for part in parts if part)}"


def titles(groups: Iterable[Group]) -> dict[Group, str]:
    """The title of each group, with its protocol where another group has the same."""
    named = {group: group.title for group in groups}
    repeated = Counter(named.values())
    return {
        group: title if repeated[title] == 1 else f"{title}, protocol {group.protocol}"
        for group, title in named.items()
    }


NUMBERS = ["published", "published_sd", "printed"]
"""A published number: its value and deviation (NaN where none is printed), and its text."""


@cache
def reference() -> pd.DataFrame:
    """reference.csv as text: one row per printed cell of the three papers' 24 tables, in print order."""
    with files("kdbench.catalogue").joinpath("reference.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


@cache
def published() -> pd.DataFrame:
    """The rows of reference.csv as their canonical KEY and NUMBERS.

    SemCKD's CKA compares layers during training, SSKD's finished embeddings: the former is the metric `layer_cka`.
    """
    raw = reference()
    metric = raw["metric"].mask((raw["paper"] == "semckd") & (raw["metric"] == "cka"), "layer_cka")
    keys = canonical(raw.rename(columns={"scenario": "setting"}).assign(metric=metric))[KEY]
    missing = {"": layouts().dash, "nan": layouts().nan}
    texts = [
        missing.get(value) or value + (f" ± {sd}" if sd else "")
        for value, sd in zip(raw["value"], raw["std"], strict=True)
    ]
    return keys.assign(published=_numbers(raw["value"]), published_sd=_numbers(raw["std"]), printed=texts)


def _numbers(texts: pd.Series) -> list[float]:
    return [float(text) if text else float("nan") for text in texts]


@cache
def printed(table: str) -> pd.DataFrame:
    """The rows of ``published`` that stand in a paper's table, one per place of its layout, in print order."""
    raw = reference()
    rows = raw[raw["paper"] + "-" + raw["table"] == table].to_dict("index")
    found = []
    for place in layouts().tables[table].places:
        wanted = {_COLUMNS.get(name, name): value for name, value in place.select.items()}.items()
        found.append([at for at, row in rows.items() if wanted <= row.items()][place.occurrence])
    return published().loc[found]


_COLUMNS = {"setting": "scenario"}
"""Columns of reference.csv that layouts call otherwise."""


def published_for(keys: pd.DataFrame) -> pd.DataFrame:
    """The NUMBERS for each key, in the order of ``keys``; of several printed ones the first, NaN and "" without any."""
    known = published().dropna(subset="published").drop_duplicates(KEY)
    found = canonical(keys[KEY]).merge(known, on=KEY, how="left")
    return found[NUMBERS].fillna({"printed": ""}).set_index(keys.index)
