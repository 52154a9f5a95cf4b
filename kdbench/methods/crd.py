"""Contrastive representation distillation (CRD), with its sampling of negatives."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveInt, PositiveNumber, Share
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32, project, unit_rows
from kdbench.methods.term import Term, TermContext
from kdbench.models.outputs import Outputs


EPSILON = 1e-7
"""The reference's, beside a probability that is compared with noise."""


class CRD(Term):
    """Contrastive representation distillation: an image's two embeddings find each other among thousands of others.

    Equation:   u = g(e) / |g(e)|,  g = linear with bias;  M_s, M_t [n, width] = banks: a memory of u for every image
                P_s(i, j) = exp( u_s,i · M_t,j / T ) / Z_s,  P_t(i, j) = exp( u_t,i · M_s,j / T ) / Z_t,  c = K / n
                l(P) = -mean_i [ log P_ip / (P_ip + c)  +  sum over K negatives j of  log c / (P_ij + c) ]
                L = l(P_s) + l(P_t);  the positive p is the image itself (`exact`), or one of its class (`relax`)
    Shapes:     embeddings e [B, D]; the two widths may differ. n = all images that the student trains on.
    Negatives:  K = `negatives` images of other classes for each image, drawn anew in every step, without replacement.
                Where some class leaves fewer than K others they are drawn with replacement, for all images: so it is
                with a quarter of CIFAR-100 (12,375 others), and with tiny data sets, where each recurs many times.
    Banks:      start at random; after a step, row i = momentum · row i + (1 - momentum) · u_i, scaled to length 1.
                Z = n · mean of exp in the first step, then constant. Banks and Z are saved with the run.
    Reduction:  sum over negatives, mean over the batch. It starts near 2·(log(1 + K) + 1) = 21.4.
    Trained:    both linear maps, the teacher's, too.
    Weights:    CRD, SSKD, SemCKD 0.8; EGA 0.8 on its node embeddings (ours).
    Departures: the paper has one critic of both embeddings; its code, and this, one anchored at either. The reference
                gathers K rows of the bank for each image; here one product scores an image against the whole bank and
                the drawn columns are taken: the same values. Its T is 0.07 rounded to float32, ours is not: no difference
                that can be seen. For how negatives are drawn see `Negatives`.
    Source:     CRD's code (crd/criterion.py, crd/memory.py, dataset/cifar100.py).
    """

    paper = "Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020"
    reads = "embedding, sample indices, the labels of the training set"
    reads_maps = False
    version = 1
    bf16_version = 1

    student_bank: Tensor
    teacher_bank: Tensor
    student_z: Tensor
    teacher_z: Tensor

    def __init__(
        self,
        context: TermContext,
        *,
        negatives: PositiveInt = 16384,
        momentum: Share = 0.5,
        temperature: PositiveNumber = 0.07,
        width: PositiveInt = 128,
        mode: Literal["exact", "relax"] = "exact",
    ) -> None:
        super().__init__(context)
        if context.labels is None:
            raise BadInput(
                "crd: draws its negatives by the labels of the training set, and TermContext.labels has none"
            )
        self.negatives = Negatives(context.labels, negatives)
        self.momentum = momentum
        self.temperature = temperature
        self.relax = mode == "relax"
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.embed_student = nn.Linear(context.student.embedding, width)
        self.embed_teacher = nn.Linear(context.teacher.embedding, width)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", new_bank(context.train_size, width))
            self.register_buffer(f"{side}_z", torch.zeros(()))
        self.register_state_dict_pre_hook(up_to_date)  # type: ignore[no-untyped-call]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the sum of both sides' losses."""
        self.after_step()  # where a training loop of one's own left it out
        drawn = self.negatives.draw(batch.indices, relax=self.relax)
        s = unit(project(self.embed_student, student.embedding))
        t = unit(project(self.embed_teacher, teacher.embedding))
        s_scores = exponentials(s, self.teacher_bank, drawn.columns, self.temperature)
        t_scores = exponentials(t, self.student_bank, drawn.columns, self.temperature)
        self._settle(self.student_z, s_scores, drawn.mask)
        self._settle(self.teacher_z, t_scores, drawn.mask)
        noise = self.negatives.count / self.context.train_size
        loss = contrast_loss(s_scores / self.student_z, drawn.mask, noise)
        loss = loss + contrast_loss(t_scores / self.teacher_z, drawn.mask, noise)
        self._seen = batch.indices, s.detach(), t.detach()
        return loss

    def after_step(self) -> None:
        """Bring the banks up to date. The backward pass needs them as they were scored."""
        if self._seen is None:
            return
        indices, s, t = self._seen
        move_rows(self.student_bank, indices, s, self.momentum)
        move_rows(self.teacher_bank, indices, t, self.momentum)
        self._seen = None

    @torch.no_grad()
    def _settle(self, z: Tensor, scores: Tensor, mask: Tensor) -> None:
        """Leave Z as it is, or set it from the first scores. Chosen on the device: asking it would stop the step."""
        torch.where(z > 0, z, first_z(scores, mask, self.context.train_size), out=z)


def up_to_date(term: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Move the rows of the last step before CRD's state is saved, so that what is loaded goes on as what was saved."""
    if isinstance(term, CRD):
        term.after_step()


@in_float32
def unit(rows: Tensor) -> Tensor:
    """Rows of [B, D] scaled to length 1."""
    return unit_rows(rows, epsilon=1e-6)


@in_float32
def exponentials(embedding: Tensor, bank: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """exp( inner product / temperature ) of each row of [B, D] with the bank's rows that it drew; columns [B, 1 + W]."""
    return ((embedding @ bank.T).gather(1, columns) / temperature).exp()


@torch.no_grad()
def first_z(scores: Tensor, mask: Tensor, images: int) -> Tensor:
    """The number of images times the mean of the scores [B, 1 + W] in ``mask``."""
    return images * (scores * mask).sum() / mask.sum()


@in_float32
def contrast_loss(probabilities: Tensor, mask: Tensor, noise: float) -> Tensor:
    """Loss of one side: probabilities [B, 1 + W], the positive first; those outside ``mask`` [B, 1 + W] are ignored."""
    positive, others = probabilities[:, 0], probabilities[:, 1:]
    found = (positive / (positive + noise + EPSILON)).log()
    rejected = (((others + EPSILON) / noise).log1p() * mask[:, 1:]).sum(1)
    return (rejected - found).mean()


def new_bank(images: int, width: int) -> Tensor:
    """Random rows [images, width] of length about 1."""
    return (2 * torch.rand(images, width) - 1) * math.sqrt(3 / width)


@torch.no_grad()
def move_rows(bank: Tensor, indices: Tensor, embedding: Tensor, momentum: float) -> None:
    """Move the rows ``indices`` of a bank towards an embedding [B, width], in place."""
    rows = unit_rows(momentum * bank[indices] + (1 - momentum) * embedding, epsilon=1e-6)
    bank.index_copy_(0, indices, rows)


class NegativeSample(NamedTuple):
    """Columns [B, 1 + W] of the bank, the positive first, and which of them count: [B, 1 + W] bool."""

    columns: Tensor
    mask: Tensor


class Negatives(nn.Module):
    """Draws images of other classes from the training set, on the device, from torch's own generator.

    Without replacement, all images of a batch share one shuffle of the set: each starts at a random place in it and
    takes the next ``count`` images of other classes, around the end. So each has a uniformly drawn set, and the sets of
    two images overlap on average as much as if each had a shuffle of its own, for a fraction of the time.

    Raises BadInput where the set has a single class.
    """

    labels: Tensor
    by_class: Tensor
    first: Tensor
    size: Tensor

    def __init__(self, labels: Tensor, count: int) -> None:
        super().__init__()
        sizes = labels.bincount()
        largest = int(sizes.max())
        if largest == len(labels):
            raise BadInput("crd: all training images are of one class: there is nothing to contrast them with")
        self.count = count
        self.replace = count > len(labels) - largest
        self.window = min(count + largest, len(labels))
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("size", sizes, persistent=False)

    def draw(self, indices: Tensor, *, relax: bool) -> NegativeSample:
        """Draw for the images ``indices`` [B]. The positive is the image itself; with ``relax`` any image of its class."""
        own = self.labels[indices]
        positive = self.by_class[self.first[own] + randint_below(self.size[own])] if relax else indices
        columns, mask = self._with_replacement(own) if self.replace else self._without_replacement(own)
        always = torch.ones_like(mask[:, :1])
        return NegativeSample(torch.cat([positive[:, None], columns], 1), torch.cat([always, mask], 1))

    def _with_replacement(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """With replacement: ranks among the images of other classes, which lie before and after the own class."""
        others = (len(self.labels) - self.size[own])[:, None].expand(-1, self.count)
        rank = randint_below(others)
        place = rank + (rank >= self.first[own][:, None]) * self.size[own][:, None]
        return self.by_class[place], torch.ones_like(place, dtype=torch.bool)

    def _without_replacement(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Without replacement: windows of a shuffle, wide enough for ``count`` images of other classes."""
        total, device = len(self.labels), self.labels.device
        shuffle = torch.randperm(total, device=device)
        start = torch.randint(total, (len(own),), device=device)
        around = torch.cat([shuffle, shuffle[: self.window]])
        columns = around.unfold(0, self.window, 1)[start]
        other = self.labels[around].unfold(0, self.window, 1)[start] != own[:, None]
        return columns, other & (other.cumsum(1, dtype=torch.int32) <= self.count)


def randint_below(limits: Tensor) -> Tensor:
    """A whole number from 0 to limit - 1 for each limit."""
    return torch.randint(2**62, limits.shape, device=limits.device) % limits
