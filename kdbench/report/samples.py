"""Rows → the single trials behind a table, which are what tests compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from kdbench.report.rows import Row
from kdbench.report.tables import Pair, Table


Key = tuple[str, str, str, str, str]
"""What tells tables apart: suite, protocol, data set, scenario, strategy."""


@dataclass
class Samples:
    """The measured accuracies (%) of one setting: by (method, pair), then by trial.

    Trials of a number are paired, unless ``teachers`` says that they learned from different weights of the teacher.
    """

    methods: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    trials: dict[tuple[str, Pair], dict[int, float]] = field(default_factory=dict)
    teachers: dict[tuple[str, Pair], dict[int, str]] = field(default_factory=dict)

    def of(self, method: str, pair: Pair) -> dict[int, float]:
        """The accuracies of a cell by trial; {} where nothing has been measured."""
        return self.trials.get((method, pair), {})

    def mean(self, method: str, pair: Pair) -> float | None:
        """The mean over a cell's trials."""
        values = self.of(method, pair)
        return fmean(values.values()) if values else None

    def common(self, methods: Sequence[str], pair: Pair) -> list[int]:
        """The trials that all methods have of a pair."""
        first, *others = (self.of(method, pair).keys() for method in methods)
        return sorted(set(first).intersection(*others))

    def paired_means(self, methods: Sequence[str], pair: Pair) -> list[float]:
        """The methods' means over the trials that all of them have; [] where there is none."""
        trials = self.common(methods, pair)
        return [fmean(self.of(method, pair)[trial] for trial in trials) for method in methods] if trials else []

    def differences(self, method: str, other: str, pair: Pair) -> list[float]:
        """method − other in each trial that both have: the same batches and initial weights."""
        ours, theirs = self.of(method, pair), self.of(other, pair)
        shared = sorted(ours.keys() & theirs.keys())
        return [ours[trial] - theirs[trial] for trial in shared if self._one_teacher(method, other, pair, trial)]

    def _one_teacher(self, method: str, other: str, pair: Pair, trial: int) -> bool:
        known = {self.teachers.get((name, pair), {}).get(trial, "") for name in (method, other)}
        return len(known - {""}) < 2


def samples_by_table(rows: Sequence[Row]) -> dict[Key, Samples]:
    """Group rows as make_tables does."""
    found: dict[Key, Samples] = {}
    for row in rows:
        samples = found.setdefault((row.suite, row.protocol, row.dataset, row.scenario, row.strategy), Samples())
        pair = (row.teacher, row.student)
        cell = samples.trials.setdefault((row.method, pair), {})
        if row.top1 is not None:
            cell[row.trial] = row.top1
            samples.teachers.setdefault((row.method, pair), {})[row.trial] = row.teacher_sha256
        if row.method not in samples.methods:
            samples.methods.append(row.method)
        if pair not in samples.pairs:
            samples.pairs.append(pair)
    return found


def titles(keys: Iterable[Key]) -> dict[Key, str]:
    """The title of each setting, with its protocol where another has the same."""
    found = {key: Table(*key, score="").title for key in keys}
    counts = Counter(found.values())
    return {key: title if counts[title] == 1 else f"{title}, protocol {key[1]}" for key, title in found.items()}


def key_of(table: Table) -> Key:
    """Under which key a table's samples stand."""
    return (table.suite, table.protocol, table.dataset, table.scenario, table.strategy)
