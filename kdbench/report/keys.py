"""What a number is about, spelt so that a measured and a printed one of the same thing are equal."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from kdbench.suite.specs import Scenario
from kdbench.suite.tiny import TINY


_PLAIN = {"student", "baseline", "ce"}
_USUAL = {"fewshot=1", "noise=0"}


class Key(NamedTuple):
    """What a number is about. ``make_key`` makes one."""

    paper: str
    method: str
    teacher: str
    student: str
    dataset: str
    strategy: str
    setting: str
    metric: str


def make_key(
    paper: str, method: str, teacher: str, student: str, dataset: str, strategy: str, setting: str, metric: str
) -> Key:
    """One spelling for all that is the same: the plain student has no teacher, the teacher no student."""
    if method in _PLAIN:
        method, teacher, strategy = "ce", "", ""
    elif method == "teacher":
        student, strategy = "", ""
    return Key(paper, method, teacher, student, dataset, strategy, canonical_setting(setting), metric)


def tiny_paper(paper: str) -> str:
    """What stands for a paper in the keys of tiny runs, so that none of these equals a printed number's."""
    return TINY + paper if paper else ""


@lru_cache(maxsize=1024)
def canonical_setting(setting: str) -> str:
    """``noise=0.10,fewshot=1.0`` as ``noise=0.1``: sorted, numbers in one spelling, without what is the usual case."""
    parts = {_canonical(part.strip()) for part in setting.split(",") if part.strip()}
    return ",".join(sorted(parts - _USUAL))


def scenario_setting(scenario: Scenario, paper: str | None) -> str:
    """A scenario as the reference spells it: ``fewshot=0.25``, ``noise=0.1``; empty for the usual case.

    Wrong labels that are drawn otherwise than under the protocol of the ``paper`` say how: ``labels=classes``.
    """
    parts = [f"fewshot={scenario.fraction:g}"] if scenario.fraction < 1 else []
    parts += [f"noise={scenario.label_noise:g}"] if scenario.label_noise > 0 else []
    if scenario.label_noise > 0 and scenario.noise != _NOISE.get(paper or "", "other"):
        parts.append(f"labels={scenario.noise}")
    return ",".join(parts)


_NOISE = {"semckd": "all"}
"""How the papers' protocols draw wrong labels, where not from the other classes."""


@lru_cache(maxsize=4096)
def split_method(name: str) -> tuple[str, str]:
    """``ega-no-edge[node_weight=1.2]`` as the method and what a sweep varies of it: ``ega-no-edge``, ``node_weight=1.2``."""
    method, bracket, varied = name.partition("[")
    if not bracket or not varied.endswith("]") or "=" not in varied or not method:
        return name, ""
    return method, varied[:-1]


def _canonical(part: str) -> str:
    key, _, value = part.partition("=")
    try:
        return f"{key.strip()}={float(value):g}"
    except ValueError:
        return f"{key.strip()}={value.strip()}"
