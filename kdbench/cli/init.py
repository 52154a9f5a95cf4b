"""`kdbench init`: a folder to start from, with a suite, a loss and the test of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.catalogue.text import LONGEST, command, shell_line, shorten
from kdbench.cli.options import path
from kdbench.errors import BadInput
from kdbench.files import write_text


SUITE = """\
# Run:    {run}
# Report: {report}
# All keys: https://kdbench.github.io/kdbench/

# How everything is trained: a protocol (kdbench list protocols), here with changes that make the runs short.
protocol: {{base: demo, epochs: 4, milestones: [3], teacher: {{epochs: 3, milestones: [2]}}}}

dataset: {{name: digits, train_per_class: 20, test_per_class: 20}}    # kdbench list datasets
trials: 2                                # repetitions with other seeds; the tables show mean ± sd
# scenario: {{fraction: 0.5}}              # few-shot: half of each class's images. Or {{label_noise: 0.2}}

grid:                                    # every teacher × student × method; several grids are a list
  teacher: resnet14                      # kdbench list models
  student: [resnet8]
  method:                                # kdbench list methods
    - ce                                 # the student alone
    - kd                                 # a method of the protocol, with its weights
    - name: mine                         # your own: a weighted sum of losses
      terms:
        ce: 1.0
        losses:EmbeddingDistance: {{weight: 0.5, power: 2.0}}    # module:class, in the folder of this file
"""
LOSS = '''\
"""The losses of this suite: https://kdbench.github.io/kdbench/guides/own-loss/."""

from torch import Tensor, nn

from kdbench import Batch, Outputs, Term, TermContext
from kdbench.methods import PositiveNumber


class EmbeddingDistance(Term):
    """Distance between the projected student's and the teacher's embedding.

    Equation:   L = 1 / (B · D) · sum |W s + b - t|^power
    Shapes:     student's embedding s [B, D_s], teacher's t [B, D]; W and b are trained with the student.
    """

    reads = "embedding"

    def __init__(self, context: TermContext, *, power: PositiveNumber = 2.0) -> None:
        super().__init__(context)
        self.power = power
        self.project = nn.Linear(context.student.embedding, context.teacher.embedding)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean over images and dimensions."""
        return (self.project(student.embedding) - teacher.embedding).abs().pow(self.power).mean()
'''
TEST = '''\
"""Run it with: python -m pytest."""

import torch
from losses import EmbeddingDistance

from kdbench import Batch, Outputs, TermContext
from kdbench.models import Shapes


STUDENT, TEACHER = (Shapes(logits=10, embedding=width, features=()) for width in (6, 8))
BATCH = Batch(images=torch.zeros(4, 3, 32, 32), labels=torch.arange(4), indices=torch.arange(4))


def outputs(shapes: Shapes) -> Outputs:
    return Outputs(torch.randn(4, shapes.logits), torch.randn(4, shapes.embedding), features=[], preactivations=[])


def test_the_distance_is_zero_where_the_embeddings_agree_and_has_gradients_elsewhere() -> None:
    term = EmbeddingDistance(TermContext(STUDENT, TEACHER, classes=10, train_size=40, batch_size=4), power=2.0)
    student, teacher = outputs(STUDENT), outputs(TEACHER)
    term(student, teacher, BATCH).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())
    agreeing = teacher._replace(embedding=term.project(student.embedding))
    assert term(student, agreeing, BATCH).item() == 0.0
'''


def init(
    name: Annotated[
        Path, typer.Argument(metavar="NAME", parser=path, help="A new folder; the suite is named after it.")
    ],
) -> None:
    """Write a suite to start from, and a loss of your own with its test.

    The suite trains on the embedded digits and needs no download.
    """
    stem = name.name
    if not stem or stem == ".." or not stem.isprintable() or len(stem) > LONGEST:
        raise BadInput(f"{shorten(str(name), 200)}: give a name for the new folder, such as my_suite")
    if name.exists() or name.is_symlink():
        raise BadInput(f"{name}: already exists, and nothing is overwritten. Give another name")
    suite = name / f"{stem}.yaml"
    where = f"./{suite}" if str(suite).startswith("-") else str(suite)
    run, report = command("run", where), command("report", where)
    contents = {suite: SUITE.format(run=run, report=report), name / "losses.py": LOSS, name / "test_losses.py": TEST}
    try:
        name.mkdir(parents=True)
        for file, text in contents.items():
            write_text(file, text)
    except OSError as error:
        raise BadInput(f"{name}: cannot be written: {error.strerror or error}") from None
    typer.echo("\n".join(f"wrote {file}" for file in contents))
    test = shell_line(["python", "-m", "pytest", str(name / "test_losses.py")])
    typer.echo("\n".join(["Next:", f"  {command('validate', where)}", f"  {run}", f"  {report}", f"  {test}"]))
