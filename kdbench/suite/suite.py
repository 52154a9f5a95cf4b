"""A validated suite and its runs."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.suite.methods import reads_teacher
from kdbench.suite.protocols import ResolvedProtocol
from kdbench.suite.specs import DatasetSpec, RunSpec, Scenario, TeacherSpec, TermUse


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
    """A suite file's content: its runs in the order of the file."""

    name: str
    file: str
    description: str
    runs: tuple[Run, ...]

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


def make_spec(cell: Cell, terms: tuple[TermUse, ...], protocol: ResolvedProtocol, trial: int) -> RunSpec:
    """Resolve a combination under a protocol. A method that reads no teacher has none, so all pairs share its runs."""
    settings, dataset = protocol.settings, cell.dataset
    teacher, head = None, None
    if cell.teacher and reads_teacher(terms):
        recipe = settings.teacher_recipe(cell.teacher, dataset.name)
        teacher = TeacherSpec(
            network=cell.teacher, dataset=dataset, recipe=recipe, checkpoint=settings.teacher_checkpoint
        )
        if cell.strategy == "sequential":
            teacher = teacher.model_copy(update={"head": settings.head_spec(dataset.name, simultaneous=False)})
        elif cell.strategy == "simultaneous":
            head = settings.head_spec(dataset.name, simultaneous=True)
    return RunSpec(
        student=cell.student,
        teacher=teacher,
        head=head,
        terms=terms,
        dataset=dataset,
        scenario=cell.scenario,
        recipe=settings.recipe(cell.student, dataset.name),
        trial=trial,
    )
