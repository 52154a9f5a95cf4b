"""Rows → the single trials behind a table, which are what tests compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from kdbench.report.keys import Group, Pair
from kdbench.report.rows import Row


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

    def common(self, methods: Sequence[str], pair: Pair) -> list[int]:
        """The trials that all methods have of a pair, learned from the same weights of its teacher."""
        first, *others = (self.of(method, pair).keys() for method in methods)
        shared = sorted(set(first).intersection(*others))
        return [trial for trial in shared if self._one_teacher(methods, pair, trial)]

    def paired_means(self, methods: Sequence[str], pair: Pair) -> list[float]:
        """The methods' means over the trials that all of them have; [] where there is none."""
        trials = self.common(methods, pair)
        return [fmean(self.of(method, pair)[trial] for trial in trials) for method in methods] if trials else []

    def differences(self, method: str, other: str, pair: Pair) -> list[float]:
        """method − other in each trial that both have: the same batches and initial weights."""
        ours, theirs = self.of(method, pair), self.of(other, pair)
        return [ours[trial] - theirs[trial] for trial in self.common((method, other), pair)]

    def shared_means(self, pair: Pair) -> dict[str, float]:
        """What a best method is chosen by: ``shared_means`` of a pair's methods, of those that have one."""
        means = shared_means(
            [self.of(method, pair) for method in self.methods],
            lambda trial: self._one_teacher(self.methods, pair, trial),
        )
        return {method: mean for method, mean in zip(self.methods, means, strict=True) if mean is not None}

    def _one_teacher(self, methods: Sequence[str], pair: Pair, trial: int) -> bool:
        known = {self.teachers.get((name, pair), {}).get(trial, "") for name in methods}
        return len(known - {""}) < 2


def shared_means(
    cells: Sequence[Mapping[int, float]], usable: Callable[[int], bool] = lambda trial: True
) -> list[float | None]:
    """The mean of each cell over the usable trials that all cells with two or more share.

    None for a cell of one trial, and for all where fewer than two cells or trials are left: one trial makes nothing the best.
    """
    several = [cell.keys() for cell in cells if len(cell) > 1]
    shared = set(several[0]).intersection(*several[1:]) if len(several) > 1 else set()
    trials = sorted(filter(usable, shared))
    if len(trials) < 2:
        return [None] * len(cells)
    return [fmean(cell[trial] for trial in trials) if len(cell) > 1 else None for cell in cells]


def samples_by_table(rows: Sequence[Row]) -> dict[Group, Samples]:
    """Group rows as make_tables does."""
    found: dict[Group, Samples] = {}
    for row in rows:
        samples, pair = found.setdefault(row.group, Samples()), row.pair
        cell = samples.trials.setdefault((row.method, pair), {})
        if row.top1 is not None:
            cell[row.trial] = row.top1
            samples.teachers.setdefault((row.method, pair), {})[row.trial] = row.teacher_sha256
        if row.method not in samples.methods:
            samples.methods.append(row.method)
        if pair not in samples.pairs:
            samples.pairs.append(pair)
    return found
