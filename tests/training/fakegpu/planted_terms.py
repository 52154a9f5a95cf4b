"""Losses that run on a CPU and would be refused, or slow, on a GPU."""

import torch

from kdbench.methods import Term


class Asks(Term):
    """Reads its value in every step."""

    def forward(self, student, teacher, batch):
        loss = student.logits.square().mean()
        self.last = loss.item()
        return loss


class PicksFromTheCPU(Term):
    """Picks by indices on the CPU."""

    def forward(self, student, teacher, batch):
        pick = torch.arange(len(batch)).flip(0)
        return student.logits[pick].square().mean()


class HoldsATensor(Term):
    """Multiplies with a tensor that no buffer holds, so that it stays on the CPU."""

    def forward(self, student, teacher, batch):
        factors = torch.linspace(0, 1, student.logits.shape[1])
        return (student.logits * factors).mean()
