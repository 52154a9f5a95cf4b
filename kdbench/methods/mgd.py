"""Matching guided distillation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveInt
from kdbench.data.batch import Batch, Batches
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import LayerPair, Outputs
from kdbench.suite.compatibility import matched_levels


RARE = 0.001
"""The share of negative values below which a channel counts as having none."""


class MGD(Term):
    """MGD: each channel of the student learns from those channels of the teacher that look most like it.

    Equation:   T'[c] = the largest of T[c'] over the g channels c' that belong to c;  m[c] = mean of their margins
                S' = scale · S + shift, per channel;  target = max(T', m)
                L = 1/B · sum over levels i of 2^(i - last) · sum over B, C, H, W of
                    (S' - target)² where S' > target or target > 0
                margin of a teacher's channel = mean of the negative part of N(beta, gamma²), of its last batch norm; where
                less than 0.001 of it is negative, -3·|gamma|
    Shapes:     pre-activations S [B, C_s, H, W] of the student and T [B, C_t, H, W] of the teacher. Levels are pairs of
                stages of one size with C_s ≤ C_t: each of the student's takes the first of the teacher's that lies
                deeper than the one taken last. g = ⌊C_t / C_s⌋.
    Channels:   before the epochs 1, 1 + update_interval, …, the training images, or the first batches that hold `images` of
                them, pass through both networks. The cost of a pair is the mean of 2 - 2·cosine of its two maps; each of
                the student's channels gets g of the teacher's, for the least total cost. Where C_t is no multiple of C_s
                the teacher's last channels are left out. The choice is saved with the run.
    Reduction:  sum over C, H, W, divided by the nominal batch size, also for a short batch.
    Trained:    scale and shift.
    Weights:    SemCKD 1·ce + 1·kd + 0.0001·mgd. The authors divide by 10,000, too, for images of 224 pixels.
    Options:    maximum: `signed` takes the largest value, as SemCKD's version does, `absolute` that of the largest
                magnitude, as the paper and the authors' present code do. normalise: scale and shift follow a batch norm,
                as the authors have it; SemCKD's version leaves that in evaluation mode from the first choice on. images:
                20,000 take 313 batches of 64; both codes take one batch more, as `images: 20096` does.
    Departures: the half of ShuffleNetV2's channels that its last unit does not change takes part, with margin 0, for it is
                the output of a ReLU; SemCKD's version drops it. Costs are not rounded to integers.
    Numerics:   a batch norm with gamma = 0 has the margin min(beta, 0).
    Source:     the authors' MGDistiller, SemCKD's version of it.
    """

    paper = "Yue, Deng, Zhou. Matching Guided Distillation. ECCV 2020"
    reads = "all stages' pre-activations, the teacher's batch norms"
    requires = ("matching_level", "preactivations", "last_norms")
    version = 1

    def __init__(
        self,
        context: TermContext,
        *,
        maximum: Literal["absolute", "signed"] = "signed",
        update_interval: PositiveInt = 2,
        normalise: bool = False,
        images: PositiveInt = 20_000,
    ) -> None:
        super().__init__(context)
        ours, theirs = ([(shape[0], shape[1]) for shape in net.stages] for net in (context.student, context.teacher))
        self.levels = matched_levels(ours, theirs)
        if not self.levels:
            raise BadInput("mgd: no stage of the student has the size of one of the teacher's and no more channels")
        self.absolute = maximum == "absolute"
        self.update_interval = update_interval
        self.normalise = normalise
        self.images = images
        self.norms = nn.ModuleList(nn.BatchNorm2d(ours[student][0]) for student, _ in self.levels)
        for level, (student, teacher) in enumerate(self.levels):
            channels, others = ours[student][0], theirs[teacher][0]
            self.register_buffer(f"chosen{level}", torch.arange(others // channels * channels).reshape(-1, channels))
            self.register_buffer(f"margins{level}", torch.zeros(others))

    def train(self, mode: bool = True) -> MGD:
        """Set the mode; the batch norms keep their initial statistics unless they are to normalise."""
        super().train(mode)
        self.norms.train(mode and self.normalise)
        return self

    @torch.no_grad()
    def begin_epoch(self, epoch: int, student: Backbone, teacher: Backbone, stream: Batches) -> None:
        """Choose the teacher's channels anew where it is time for that."""
        if (epoch - 1) % self.update_interval:
            return
        norms = teacher.last_norms()
        totals = [torch.zeros(())] * len(self.levels)
        count = 0
        for batch in stream.epoch(epoch):
            shown = batch.images if batch.teacher_images is None else batch.teacher_images
            pairs = self._maps(student(batch.images), teacher(shown))
            totals = [
                total.to(ours.device) + costs(ours, theirs) for total, (ours, theirs) in zip(totals, pairs, strict=True)
            ]
            count += len(batch)
            if count >= self.images:
                break
        for level, total in enumerate(totals):
            groups = self.get_buffer(f"chosen{level}")
            groups.copy_(assignment(total / count, len(groups)))
            margins = self.get_buffer(f"margins{level}")
            known = channel_margins(norms[self.levels[level][1]])
            margins.copy_(F.pad(known, (len(margins) - len(known), 0)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum over the levels, divided by the nominal batch size."""
        losses = []
        for level, (ours, theirs) in enumerate(self._maps(student, teacher)):
            chosen, margins = self.get_buffer(f"chosen{level}"), self.get_buffer(f"margins{level}")
            target = reduce_channels(theirs, chosen, absolute=self.absolute)
            loss = mgd_loss(self.norms[level](ours), target, margins[chosen].mean(0))
            losses.append(loss * 2.0 ** (level + 1 - len(self.levels)))
        return torch.stack(losses).sum() / self.context.batch_size

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return the levels' pre-activations; the scaled map is compared with the teacher's chosen channels."""
        pairs = []
        for level, (ours, theirs) in enumerate(self._maps(student, teacher)):
            target = reduce_channels(theirs, self.get_buffer(f"chosen{level}"), absolute=self.absolute)
            pairs.append(LayerPair(ours, theirs, compared=(self.norms[level](ours), target)))
        return pairs

    def _maps(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        return [(student.preactivations[ours], teacher.preactivations[theirs]) for ours, theirs in self.levels]


@in_float32
def costs(student: Tensor, teacher: Tensor) -> Tensor:
    """2 - 2·cosine of each channel's map with each other's, summed over a batch: [B, C, H, W], [B, D, H, W] → [C, D]."""
    ours, theirs = (F.normalize(each.flatten(2), dim=2) for each in (student, teacher))
    return (2 - 2 * ours @ theirs.transpose(1, 2)).sum(0)


def assignment(cost: Tensor, groups: int) -> Tensor:
    """The teacher's channels of each of the student's, [groups, C], for the least total of costs [C, D]."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    channels = len(cost)
    rows = cost[:, : groups * channels].repeat(groups, 1).double().cpu().numpy()
    _, columns = linear_sum_assignment(rows)
    return torch.from_numpy(columns).reshape(groups, channels)


def channel_margins(norm: nn.BatchNorm2d) -> Tensor:
    """The margin of each channel that a batch norm gives, [C], negative or 0."""
    beta, gamma = norm.bias.double(), norm.weight.double().abs().clamp(min=1e-12)
    share = torch.special.ndtr(-beta / gamma)
    density = (-(beta / gamma).square() / 2).exp() / math.sqrt(2 * math.pi)
    mean = beta - gamma * density / share.clamp(min=RARE)
    return torch.where(share > RARE, mean, -3 * gamma).float()


def reduce_channels(teacher: Tensor, chosen: Tensor, *, absolute: bool) -> Tensor:
    """The largest value, or that of the largest magnitude, of each group of channels: [B, D, H, W], [g, C] → [B, C, H, W]."""
    groups = teacher[:, chosen]
    if not absolute:
        return groups.amax(1)
    return groups.gather(1, groups.abs().argmax(1, keepdim=True)).squeeze(1)


@in_float32
def mgd_loss(student: Tensor, target: Tensor, margins: Tensor) -> Tensor:
    """Sum of squared differences to a target that is no lower than its margin; maps [B, C, H, W], margins [C]."""
    target = torch.maximum(target, margins[:, None, None])
    return ((student - target).square() * ((student > target) | (target > 0))).sum()
