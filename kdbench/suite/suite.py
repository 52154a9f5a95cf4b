"""A validated suite and its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdbench.suite.methods import reads_teacher
from kdbench.suite.protocols import ResolvedProtocol
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario, TermUse
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
    """A suite file's content: its runs in the order of the file, and the files of weights that it names, by SHA-256."""

    name: str
    file: str
    description: str
    runs: tuple[Run, ...]
    weight_files: dict[str, Path] = field(default_factory=dict)

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
    cell: Cell, kind: NamedTeacher | None, terms: tuple[TermUse, ...], protocol: ResolvedProtocol, trial: int
) -> RunSpec:
    """Resolve a combination under a protocol. A method that reads no teacher has none, so all pairs share its runs."""
    settings, data = protocol.settings, cell.dataset
    found = resolve_teacher(kind, data, cell.strategy, settings) if kind and reads_teacher(terms) else None
    parts = part_specs(found, cell.student, data, terms, settings) if found else ()
    return RunSpec(
        student=cell.student,
        teacher=found.spec if found else None,
        head=found.head if found else None,
        view=found.view if found else None,
        terms=terms,
        dataset=data,
        scenario=cell.scenario,
        recipe=settings.recipe(cell.student, data.name),
        trial=trial,
        parts=parts,
    )
