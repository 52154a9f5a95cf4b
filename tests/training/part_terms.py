"""Terms with parts, for tests; named in specs by import path."""

import torch
from torch import nn

from kdbench.methods import Part, Term


class Coder(Part):
    """Reconstructs the teacher's embedding through a narrow layer."""

    def __init__(self, width, inner):
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.BatchNorm1d(inner)

    def loss(self, teacher, batch):
        return (self.up(self.norm(self.down(teacher.embedding))) - teacher.embedding).square().mean()


class Coded(Term):
    """The student's embedding learns the teacher's code."""

    reads = "embedding"
    part = ("inner",)

    def __init__(self, context, *, inner: int = 4, scale: float = 1.0):
        super().__init__(context)
        self.coder = (self.trained_part(Coder),)
        self.project = nn.Linear(context.student.embedding, inner)
        self.scale = scale

    @classmethod
    def build_part(cls, context, options):
        return Coder(context.teacher.embedding, options["inner"])

    def forward(self, student, teacher, batch):
        code = self.coder[0].down(teacher.embedding)
        return self.scale * (self.project(student.embedding) - code).square().mean()


class Exploding(Coded):
    """Its part never learns anything finite."""

    @classmethod
    def build_part(cls, context, options):
        return Explosion(context.teacher.embedding, options["inner"])


class Explosion(Coder):
    """Diverges."""

    def loss(self, teacher, batch):
        return super().loss(teacher, batch) * torch.inf


class Seeing(Term):
    """The student's logits on images and copies follow the teacher's, each row its own."""

    reads = "logits"
    views = 3

    def __init__(self, context, *, kind: str = "rotations"):
        super().__init__(context)
        self.transforms = kind

    def forward(self, student, teacher, batch):
        assert len(student.logits) == len(teacher.logits) == 4 * len(batch)
        return (student.logits - teacher.logits).square().mean()


class SeeingToo(Seeing):
    """Another one."""
