"""Factor transfer: the teacher's map, paraphrased, and the student's, translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import Share
from kdbench.data.batch import Batch
from kdbench.errors import BadInput
from kdbench.methods.at import attention
from kdbench.methods.functional import in_float32, pool_to_smaller
from kdbench.methods.term import Part, Term, TermContext
from kdbench.models.outputs import Outputs


class FT(Term):
    """Factor transfer: the student's last map, translated, follows a shorter account of the teacher's.

    Equation:   L = mean over B, H·W of | a(translate(F_s)) - a(paraphrase(F_t)) |
                a(F) = v / |v|  with v = mean over C of F², flattened over H and W
                first, on the finished teacher alone: mean over B, C, H, W of ( restore(paraphrase(F_t)) - F_t )²
    Shapes:     the last stages' maps F [B, C, H, W]. Factors have C_f = ⌊share · C_t⌋ channels and their map's height and
                width; the larger factor is average-pooled to the smaller side.
    Reduction:  mean over batch and positions.
    Part:       paraphrase: three 3×3 convolutions C_t → C_t → C_f → C_f; restore: three 3×3 transposed ones
                C_f → C_f → C_t → C_t; a leaky ReLU (0.1) after each, no batch norm. Trained once, then frozen.
    Trained:    translate: three 3×3 convolutions C_s → C_s → C_f → C_f, each with batch norm and a leaky ReLU (0.1).
    Weights:    CRD, SSKD 200. share 0.5.
    Departures: the paper is usually read as comparing factors channel by channel; the published tables come from the
                benchmark's code, which compares their attention, and so does this term.
    Numerics:   a factor of zeros has a(F) = 0 and gets no gradient.
    Source:     CRD benchmark's FactorTransfer, Paraphraser and Translator.
    """

    paper = "Kim, Park, Kwak. Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS 2018"
    reads = "the last stage's feature map"
    requires = ("factor_has_a_channel",)
    part = ("share",)
    version = 1

    def __init__(self, context: TermContext, *, share: Share = 0.5) -> None:
        super().__init__(context)
        self.paraphrase = self.trained_part(Paraphraser).encode
        source = context.student.stages[-1][0]
        factor = factor_channels(context.teacher.stages[-1][0], share)
        self.translate = nn.Sequential(
            *translation(source, source), *translation(source, factor), *translation(factor, factor)
        )

    @classmethod
    def build_part(cls, context: TermContext, options: Mapping[str, Any]) -> Part:
        """The paraphraser of the teacher's last map."""
        channels = context.teacher.stages[-1][0]
        return Paraphraser(channels, factor_channels(channels, options["share"]))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the mean absolute difference of the two factors' attention."""
        return factor_loss(self.translate(student.stages[-1]), self.paraphrase(teacher.stages[-1]).detach())


class Paraphraser(Part):
    """An autoencoder of the teacher's last map [B, channels, H, W]; its code [B, factor, H, W] is the teacher's factor."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *paraphrase(nn.Conv2d, channels, channels),
            *paraphrase(nn.Conv2d, channels, factor),
            *paraphrase(nn.Conv2d, factor, factor),
        )
        self.decoder = nn.Sequential(
            *paraphrase(nn.ConvTranspose2d, factor, factor),
            *paraphrase(nn.ConvTranspose2d, factor, channels),
            *paraphrase(nn.ConvTranspose2d, channels, channels),
        )

    def encode(self, feature_map: Tensor) -> Tensor:
        """The factor of a map."""
        factor: Tensor = self.encoder(feature_map)
        return factor

    def loss(self, teacher: Outputs, batch: Batch) -> Tensor:
        """Mean squared error of the reconstruction."""
        feature_map = teacher.stages[-1]
        return reconstruction_loss(self.decoder(self.encode(feature_map)), feature_map)


@in_float32
def factor_loss(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Mean absolute difference of the attention of two factors [B, C, H, W]; the larger one is pooled."""
    student_factor, teacher_factor = pool_to_smaller(student_factor, teacher_factor)
    return (attention(student_factor) - attention(teacher_factor)).abs().mean()


@in_float32
def reconstruction_loss(reconstruction: Tensor, feature_map: Tensor) -> Tensor:
    """Mean squared error over all elements."""
    return F.mse_loss(reconstruction, feature_map)


def factor_channels(channels: int, share: float) -> int:
    """How many channels a factor of a map has. Raises BadInput where that is none."""
    count = int(channels * share)
    if count < 1:
        raise BadInput(f"ft: share {share} leaves no channel of the teacher's {channels}")
    return count


def paraphrase(
    convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], source: int, target: int
) -> tuple[nn.Module, nn.Module]:
    """One layer of the paraphraser: a 3×3 convolution, transposed or not, that keeps height and width."""
    return convolution(source, target, kernel_size=3, padding=1), nn.LeakyReLU(0.1)


def translation(source: int, target: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """One layer of the translator."""
    return nn.Conv2d(source, target, kernel_size=3, padding=1), nn.BatchNorm2d(target), nn.LeakyReLU(0.1)
