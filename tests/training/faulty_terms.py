"""Terms that misbehave, for tests; named in suites and specs by import path."""

import os
import time
import weakref
from pathlib import Path
from typing import ClassVar

import torch

from kdbench.methods.term import Term


class _Counting(Term):
    """Counts its steps in a buffer, which is part of the checkpoint."""

    reads = "nothing"
    needs_teacher = False

    def __init__(self, context, *, after: int = 0):
        super().__init__(context)
        self.after = after
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, student, teacher, batch):
        self.steps += 1
        if self.steps > self.after:
            return self.fault(student)
        return student.logits.sum() * 0


class NotANumber(_Counting):
    """Diverges."""

    def fault(self, student):
        return student.logits.sum() * float("nan")


class Broken(_Counting):
    """Raises."""

    def fault(self, student):
        raise ValueError("broken on purpose")


class LastStraw(_Counting):
    """Has a finite loss whose gradient is too large for the weights."""

    def fault(self, student):
        return (student.logits - student.logits.detach()).sum() * 3e38


class Boasts(_Counting):
    """Tells of an accuracy that it did not measure, and of what cannot be stored."""

    def __init__(self, context, *, storable: bool = True):
        super().__init__(context, after=1000)
        self.storable = storable

    def epoch_metrics(self):
        return {"top1": 100.0, "loss": 0.0, "own": 1} if self.storable else {"own": torch.zeros(1)}


class Leaves(_Counting):
    """Ends the program, as scripts do."""

    def fault(self, student):
        raise SystemExit


class DeviceLost(_Counting):
    """Raises what torch raises when the GPU's context is broken."""

    def fault(self, student):
        raise RuntimeError("CUDA error: device-side assert triggered")


class Deadly(_Counting):
    """Ends the process, as a crash in compiled code would."""

    def fault(self, student):
        os._exit(7)


class Slow(_Counting):
    """Takes a minute for each step."""

    def fault(self, student):
        time.sleep(60)
        return student.logits.sum() * 0


class Unbuildable(Term):
    """Cannot be made."""

    reads = "nothing"
    needs_teacher = False

    def __init__(self, context, *, file: str = ""):
        super().__init__(context)
        if file:
            Path(file).read_text()
        raise ValueError("cannot be built")


class Hungry(Term):
    """Runs out of memory where more than ``most`` of it are alive, from an epoch on."""

    reads = "nothing"
    needs_teacher = False
    alive: ClassVar = weakref.WeakSet()

    def __init__(self, context, *, most: int = 1, first_epoch: int = 1):
        super().__init__(context)
        self.most = most
        self.first_epoch = first_epoch
        self.alive.add(self)

    def __hash__(self):
        return id(self)

    def forward(self, student, teacher, batch):
        if self.epoch >= self.first_epoch and len(self.alive) > self.most:
            raise torch.OutOfMemoryError(f"room for {self.most} only")
        return student.logits.sum() * 0


class Beside(_Counting):
    """Fails in one of several processes, at the end of an epoch, or for lack of memory in a step."""

    def __init__(self, context, *, rank: int = 1, hungry: bool = False):
        super().__init__(context, after=0 if hungry else 1000)
        self.rank = rank

    def here(self):
        return torch.distributed.is_initialized() and torch.distributed.get_rank() == self.rank

    def fault(self, student):
        if self.here():
            raise torch.OutOfMemoryError("no room here")
        return student.logits.sum() * 0

    def epoch_metrics(self):
        if self.here():
            raise ValueError("not here")
        return {}


class Random(Term):
    """Draws from torch's global generator."""

    reads = "logits"
    needs_teacher = False

    def forward(self, student, teacher, batch):
        return (student.logits * torch.randn_like(student.logits)).mean()
