"""Semantic calibration for cross-layer distillation."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench.catalogue.hyperparameters import PositiveInt, PositiveNumber
from kdbench.data.batch import Batch, Batches
from kdbench.errors import BadInput
from kdbench.methods.crosslayer import Attention, EqualAllocation, Projections, SharedAllocation, SimilarityEmbeddings
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import LayerPair, Outputs


class SemCKD(Term):
    """SemCKD: each student map learns from all of the teacher's maps, and attention decides how much from which.

    Equation:   A = X·Xᵀ [B, B];  q_s[b] = MLP_s(A_s[b]),  k_t[b] = MLP_t(A_t[b]), both of length 1
                a_st[b] = softmax over t of ( q_s[b]·k_t[b] / temperature )
                L = 1 / (B·S) · sum over b, s, t of  a_st[b] · mean over C, H, W of ( P_st(F_s)[b] - F_t[b] )²
    Shapes:     the S stages f1 … of the student with the T stages of the teacher, [B, C, H, W]; X is a map flattened to
                [B, C·H·W]. The larger map of a pair is average-pooled to the smaller side before the projection.
    Reduction:  mean over C, H, W; sum over teacher stages with weights that sum to 1; mean over batch and student stages.
    Trained:    one MLP for each stage of both networks (B → 2·⌊B/4⌋ → ⌊B/4⌋, ReLU between) and one projection for each
                pair: 1×1 (C_s → 2·C_t), batch norm, ReLU, 3×3, batch norm, ReLU, 1×1 (2·C_t → C_t), no biases. The
                student also learns through A_s.
    Weights:    SemCKD 1·ce + 1·kd + 400·semckd, on CIFAR-100; the authors' ImageNet command has 50.
    Batches:    the MLPs read rows of a B × B matrix, so B is the nominal batch size; shorter batches are left out.
    Options:    temperature 2 or 4 and preactivation (maps before the stages' last activation, in the Gram matrices, too)
                are the paper's section 4.5. student_layer and teacher_layer, counted from 1, fix one pair of stages
                (Figure 3): a = 1 and S = 1, the latter ours, for the paper does not say.
    Variants:   the ablations of Table 6; their code was not released, so what follows "ours" is our reading.
                equal-allocation    a = 1/T
                no-projection       P_st(F_s) and F_t give way to the outputs of a further MLP on each A. Ours: one for
                                    each stage, formed like those of q and k; the teacher's are trained, too, so both
                                    sides can become constant together.
                no-mlp              q and k are linear in the rows of A. Ours: ⌊B/4⌋ outputs, not scaled to length 1, so
                                    that raw Gram entries all but pick one teacher stage.
                no-similarity       the MLPs read X itself. Ours: their inner and outer widths stay.
                shared-allocation   one a for all images. Ours: softmax of learned logits [S, T] that start at 0.
                Ours: all of them leave short batches out, so that they differ from SemCKD in nothing else.
    Departures: the paper's loss has neither 1/B nor 1/S, the authors' code has both, and 400 belongs to it. The paper
                says that all maps are ReLU outputs; those of Wide ResNets and MobileNetV2 are not. The authors'
                experiments with pre-activations halve ShuffleNetV2's map; here it keeps all channels.
    Numerics:   a vector of length 0 stays 0 and passes no gradient; the reference divides 0 by 0 there.
    Source:     the authors' SelfA, AAEmbed, MLPEmbed and SemCKDLoss; temperature from their later SimKD repository.
    """

    paper = (
        "Chen, Mei, Zhang, Wang, Wang, Feng, Chen. Cross-Layer Distillation with Semantic Calibration. AAAI 2021; "
        "Wang, Chen, Mei, Zhang, Feng, Chen. SemCKD: Semantic Calibration for Cross-Layer Knowledge Distillation. "
        "IEEE TKDE 2022"
    )
    reads = "all stages' feature maps"
    requires = ("layer_pair_exists", "preactivations")
    full_batches = 4
    version = 1

    attention: Tensor
    attentive_images: Tensor

    def __init__(
        self,
        context: TermContext,
        *,
        temperature: PositiveNumber = 1.0,
        preactivation: bool = False,
        variant: Literal[
            "full", "equal-allocation", "no-projection", "no-mlp", "no-similarity", "shared-allocation"
        ] = "full",
        student_layer: PositiveInt | None = None,
        teacher_layer: PositiveInt | None = None,
    ) -> None:
        super().__init__(context)
        if (student_layer is None) != (teacher_layer is None):
            raise BadInput("semckd: student_layer and teacher_layer fix one pair of stages: set both or neither")
        if context.batch_size < 4:
            raise BadInput(f"semckd: the batch must have at least 4 images, not {context.batch_size}")
        self.preactivation = preactivation
        self.student_stages = chosen_stages("student_layer", student_layer, len(context.student.stages))
        self.teacher_stages = chosen_stages("teacher_layer", teacher_layer, len(context.teacher.stages))
        sources, targets = context.student.stages[self.student_stages], context.teacher.stages[self.teacher_stages]
        batch = context.batch_size
        self.allocation: nn.Module
        if variant == "equal-allocation" or student_layer is not None:
            self.allocation = EqualAllocation()
        elif variant == "shared-allocation":
            self.allocation = SharedAllocation(len(sources), len(targets), temperature)
        else:
            how = {"similarity": variant != "no-similarity", "mlp": variant != "no-mlp"}
            self.allocation = Attention(sources, targets, batch, temperature, **how)
        self.errors: Projections | SimilarityEmbeddings
        if variant == "no-projection":
            self.errors = SimilarityEmbeddings(len(sources), len(targets), batch)
        else:
            self.errors = Projections(sources, targets)
        self.register_buffer("attention", torch.zeros(len(sources), len(targets), dtype=torch.float64))
        self.register_buffer("attentive_images", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted error of all pairs of stages. Raises ValueError for a batch that is not full."""
        if len(batch) != self.context.batch_size:
            raise ValueError(f"semckd was built for batches of {self.context.batch_size} images, not {len(batch)}")
        sources, targets = self._maps(student, teacher)
        weights = self.allocation(sources, targets)
        self.attention += weights.detach().double().sum(0)
        self.attentive_images += len(batch)
        return semckd_loss(self.errors(sources, targets), weights)

    def begin_epoch(self, epoch: int, student: Backbone, teacher: Backbone, stream: Batches) -> None:
        """Forget the last epoch's attention."""
        self.attention.zero_()
        self.attentive_images.zero_()

    def epoch_metrics(self) -> dict[str, Any]:
        """Return the mean of a_st[b] over the epoch's images as ``attention``: a row for each student stage."""
        if not self.attentive_images:
            return {}
        mean = self.attention / self.attentive_images
        return {"attention": [[round(a, 6) for a in row] for row in mean.tolist()]}

    def layer_pairs(self, student: Outputs, teacher: Outputs) -> list[LayerPair]:
        """Return all pairs with their attention; what the projections make of the student's maps is compared."""
        sources, targets = self._maps(student, teacher)
        weights = self.allocation(sources, targets).flatten(1).unbind(1)
        pairs, compared = product(sources, targets), self.errors.compared(sources, targets)
        return [LayerPair(*pair, *rest) for pair, *rest in zip(pairs, weights, compared, strict=True)]

    def _maps(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        ours, theirs = (net.preactivations if self.preactivation else net.stages for net in (student, teacher))
        return ours[self.student_stages], theirs[self.teacher_stages]


@in_float32
def semckd_loss(errors: Tensor, weights: Tensor) -> Tensor:
    """Sum over the teacher's stages of the weighted errors, mean over images and the student's; both [B, S, T]."""
    return (weights * errors).sum(2).mean()


def chosen_stages(key: str, layer: int | None, count: int) -> slice:
    """All ``count`` stages, or the one that ``layer`` names, counted from 1."""
    if layer is None:
        return slice(None)
    if not 1 <= layer <= count:
        raise BadInput(f"semckd: {key} must lie between 1 and {count} for these networks, not {layer}")
    return slice(layer - 1, layer)
