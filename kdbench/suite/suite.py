"""A validated suite and its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kdbench.catalogue.networks import network
from kdbench.suite.components import canonical_text, hashed
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec, probe, similarity
from kdbench.suite.methods import auxiliary_method, reads_teacher
from kdbench.suite.protocol import Protocol
from kdbench.suite.schema import MeasureEntry
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario, StudentOf, WeightedTerm
from kdbench.suite.teachers import TeacherConfig, adapters_for, resolve_teacher


@dataclass(frozen=True)
class Run:
    """A run as a suite names it: the place in its tables, and the spec that says what is trained.

    Several runs may share one spec: the plain student stands in every teacher's column but is trained once. ``original`` is
    set for a tiny run: the suite's own run, whose place in the tables it takes.
    """

    suite: str
    protocol: Protocol
    method: str
    teacher: str
    strategy: str
    spec: RunSpec
    original: Run | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def key(self) -> tuple[str, ...]:
        """The identity of a run within a suite: its spec and its place in the tables."""
        return (self.id, self.protocol.name, self.method, self.teacher, self.strategy)

    @property
    def label(self) -> str:
        """One line for progress and messages."""
        teacher = f"{self.teacher} → " if self.spec.teacher else ""
        return f"{teacher}{self.spec.student} {self.method} #{self.spec.trial}"


@dataclass(frozen=True)
class Measurement:
    """A measurement on a run's student, or on its teacher."""

    run: Run
    of: Literal["student", "teacher"]
    spec: ProbeSpec | SimilaritySpec
    original: Measurement | None = None


@dataclass(frozen=True)
class Suite:
    """A suite file's content.

    Its runs in the order of the file, what is measured on their networks, the files of weights that it names, by SHA-256,
    the printed ``tables`` that it fills, and its ``text``. ``tiny`` says that its runs are tiny ones in the place of the
    suite's own, ``max_cohort_size`` limits what is in memory together, ``whole`` is the suite of which a part was chosen,
    ``settings`` are the options that changed the text.
    """

    name: str
    file: str
    description: str
    runs: tuple[Run, ...]
    weight_files: dict[str, Path] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    tiny: bool = False
    max_cohort_size: int | None = None
    whole: Suite | None = None
    text: str = ""
    settings: tuple[str, ...] = ()

    @property
    def specs(self) -> dict[str, RunSpec]:
        """The distinct runs by id."""
        return {run.id: run.spec for run in self.runs}

    def renamed(self, name: str) -> Suite:
        """The same under another name."""
        return replace(self, name=name, runs=tuple(replace(run, suite=name) for run in self.runs))


def run_specs(suites: Iterable[Suite]) -> list[RunSpec]:
    """The distinct runs of each suite, suite by suite."""
    return [spec for suite in suites for spec in suite.specs.values()]


def measurement_specs(suites: Iterable[Suite]) -> list[ProbeSpec | SimilaritySpec]:
    """What each suite measures, suite by suite."""
    return [measurement.spec for suite in suites for measurement in suite.measurements]


@dataclass(frozen=True)
class GridPoint:
    """One combination of a grid's axes, before the trials."""

    teacher: str
    student: str
    method: str
    dataset: DatasetSpec
    strategy: str
    scenario: Scenario


def measurements_of(run: Run, kind: TeacherConfig | None, entry: MeasureEntry) -> Iterator[Measurement]:
    """The measurements of a grid on one of its runs; ``kind`` is the run's teacher.

    A student that reads no teacher, or another, is compared with its pair's all the same, where that one is finished.
    """
    if not (entry.probe or entry.similarity):
        return
    student, settings = StudentOf(run=run.spec), run.protocol
    found = resolve_teacher(kind, run.spec.dataset, run.strategy, settings) if kind else None
    for data in entry.probe:
        yield Measurement(run, "student", probe(student, data.spec, entry.probe_protocol))
        if found and not found.head and found.spec.dataset:
            yield Measurement(run, "teacher", probe(found.spec, data.spec, entry.probe_protocol))
    for data in entry.similarity:
        if found and (run.spec.head or not found.head):
            teacher = None if found.head else found.spec
            yield Measurement(run, "student", similarity(student, teacher, found.view, data.spec))


def make_spec(
    point: GridPoint,
    kind: TeacherConfig | None,
    terms: tuple[WeightedTerm, ...],
    protocol: Protocol,
    trial: int = 0,
) -> RunSpec:
    """Resolve a combination under a protocol. A method that reads no teacher has none, so all pairs share its runs."""
    settings, data = protocol, point.dataset
    teacher = _auxiliary(point, kind, auxiliary_method(terms), protocol, trial) if auxiliary_method(terms) else None
    needed = kind and not teacher and reads_teacher(terms)
    found = resolve_teacher(kind, data, point.strategy, settings) if kind and needed else None
    finished, view = (found.spec, found.view) if found else (teacher, None)
    return RunSpec(
        student=point.student,
        teacher=finished,
        head=found.head if found else None,
        teacher_view=view,
        terms=terms,
        dataset=data,
        scenario=point.scenario,
        recipe=settings.recipe(point.student, data.name),
        trial=trial,
        adapters=adapters_for(finished, view, point.student, data, terms, settings) if finished else (),
    )


def repeated(spec: RunSpec, trials: int) -> list[RunSpec]:
    """The first ``trials`` trials of a run. What their ids have in common is written out once, for all of them."""
    common = {key: canonical_text(value) for key, value in spec.canonical().items() if key != "trial"}
    runs = []
    for trial in range(trials):
        run = spec.model_copy(update={"trial": trial})
        texts = {**common, "trial": str(trial)} if trial else common
        run.__dict__["id"] = hashed("{" + ",".join(f'"{key}":{texts[key]}' for key in sorted(texts)) + "}")
        runs.append(run)
    return runs


def _auxiliary(point: GridPoint, kind: TeacherConfig | None, method: str, protocol: Protocol, trial: int) -> StudentOf:
    """A wider student of the teacher, trained by ``method`` under the point's own strategy, scenario and trial.

    It keeps the epoch that the protocol's score names.
    """
    wider = replace(point, student=network(point.student).auxiliary)
    run = make_spec(wider, kind, protocol.terms[method], protocol, trial)
    kept = run.model_copy(update={"checkpoint": protocol.score})
    return StudentOf(run=kept)
