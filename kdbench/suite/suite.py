"""A validated suite and its runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbench.catalogue.networks import network
from kdbench.suite.methods import auxiliary_method, reads_teacher
from kdbench.suite.protocols import ResolvedProtocol
from kdbench.suite.recipe import canonical_text, hashed
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario, TeacherSpec, TermUse
from kdbench.suite.teachers import NamedTeacher, part_specs, resolve_teacher


@dataclass(frozen=True)
class Run:
    """A run as a suite names it: the place in its tables, and the spec that says what is trained.

    Several runs may share one spec: the plain student stands in every teacher's column but is trained once.
    """

    suite: str
    protocol: ResolvedProtocol
    method: str
    teacher: str
    strategy: str
    spec: RunSpec

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def key(self) -> tuple[str, ...]:
        """What tells two runs of a suite apart: the spec, and the place in a table."""
        return (self.id, self.protocol.name, self.method, self.teacher, self.strategy)

    @property
    def label(self) -> str:
        """One line for progress and messages."""
        teacher = f"{self.teacher} → " if self.spec.teacher else ""
        return f"{teacher}{self.spec.student} {self.method} #{self.spec.trial}"


@dataclass(frozen=True)
class Suite:
    """A suite file's content: its runs in the order of the file, and the files of weights that it names, by SHA-256.

    ``tables`` are the printed tables that it fills.
    """

    name: str
    file: str
    description: str
    runs: tuple[Run, ...]
    weight_files: dict[str, Path] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    @property
    def specs(self) -> dict[str, RunSpec]:
        """The distinct runs by id."""
        return {run.id: run.spec for run in self.runs}


@dataclass(frozen=True)
class Cell:
    """One combination of a grid's axes, before the trials."""

    teacher: str
    student: str
    method: str
    dataset: DatasetSpec
    strategy: str
    scenario: Scenario


def make_spec(
    cell: Cell, kind: NamedTeacher | None, terms: tuple[TermUse, ...], protocol: ResolvedProtocol, trial: int = 0
) -> RunSpec:
    """Resolve a combination under a protocol. A method that reads no teacher has none, so all pairs share its runs."""
    settings, data = protocol.settings, cell.dataset
    teacher = _auxiliary(cell, kind, auxiliary_method(terms), protocol, trial) if auxiliary_method(terms) else None
    needed = kind and not teacher and reads_teacher(terms)
    found = resolve_teacher(kind, data, cell.strategy, settings) if kind and needed else None
    finished, view = (found.spec, found.view) if found else (teacher, None)
    return RunSpec(
        student=cell.student,
        teacher=finished,
        head=found.head if found else None,
        view=view,
        terms=terms,
        dataset=data,
        scenario=cell.scenario,
        recipe=settings.recipe(cell.student, data.name),
        trial=trial,
        parts=part_specs(finished, view, cell.student, data, terms, settings) if finished else (),
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


def _auxiliary(
    cell: Cell, kind: NamedTeacher | None, method: str, protocol: ResolvedProtocol, trial: int
) -> TeacherSpec:
    """A wider student of the teacher, trained by ``method`` under the cell's own strategy, scenario and trial.

    It keeps the epoch that the protocol's score names.
    """
    wider = replace(cell, student=network(cell.student).auxiliary)
    run = make_spec(wider, kind, protocol.methods[method], protocol, trial)
    kept = run.model_copy(update={"checkpoint": protocol.settings.score})
    return TeacherSpec(network=kept.student, dataset=kept.dataset, student=kept)
