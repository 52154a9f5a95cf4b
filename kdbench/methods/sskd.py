"""Self-supervision: what a teacher knows about transformed images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.catalogue.hyperparameters import NonNegative, PositiveNumber, Share
from kdbench.data.batch import VIEWS_PER_IMAGE, Batch
from kdbench.errors import BadInput
from kdbench.methods.functional import in_float32
from kdbench.methods.pretext import SelfSupervised, head, pretext, scores, views_in
from kdbench.methods.term import Part, Term, TermContext
from kdbench.models.outputs import Outputs


class SSKD(Term):
    """SSKD: the student learns the teacher's answers to transformed images, and to a self-supervised pretext task.

    Equation:   L = transformed_weight · L_T + pretext_weight · L_ss
                L_T  = KL( softmax(z_t / T) || softmax(z_s / T) ) · T²,  z = logits of the transformed copies, T = temperature
                L_ss = KL( softmax(S_t / U) || softmax(S_s / U) ) · U²,  S = scores of the task, U = pretext_temperature
                contrastive: S_ij = cosine( h(e~_i), h(e_j) ), copies i against the batch's images j;  h of W = D outputs
    Shapes:     embeddings e and logits z of 4B views: each image, followed by its three copies. S is [3B, B].
    Reduction:  sum over answers, mean over the rows that are kept.
    Selection:  a row's rank is the position of the right answer among the teacher's scores, 0 where the teacher is right.
                Rows with rank 0 stay, and of the others the share `kept_transformed` (L_T) or `kept_pretext` (L_ss) with
                the smallest ranks, rounded down; of equal ranks the earlier rows.
    Part:       the teacher's h, Linear(D, D), ReLU, Linear(D, W), learns the task on the frozen teacher from
                cross-entropy on S, without temperature. It is not trained beside the student.
    Trained:    the student's h, of the same form on its own embedding.
    Weights:    SSKD 0.1·ce + 0.9·kd + 2.7·L_T + 10·L_ss, ce and kd on the images themselves.
    Views:      `rotations` is the released code: the image, and it turned by 90, 180 and 270 degrees, with one flip and
                four crops. `four` is the pool of the paper (kdbench/data/views.py); ours: three copies there, too.
    Tasks:      Table 2's other tasks were not released. Ours: everything stays but S and the answers. `exemplar` asks which
                training image a copy is of (W = all of them), `jigsaw` in which of 24 orders the quarters are (the copies
                are jigsaws then, for L_T, too), `rotation` for the quarter turns of all four views.
    Departures: the paper's equation 5 trains h with a temperature, its code without. The code's defaults are 2.7 for L_T
                and 10 for L_ss. By the paper's equation 8, whose third weight is that of L_ss, the supplement says 3 for
                L_ss and 5 for L_T, and the arXiv version 2.7 and 10, the code's pair swapped; the text of the ablation
                speaks for the code's order: 3 and 2.7 for L_T, 5 and 10 for L_ss. The code once swapped right and wrong
                rows in the selection; not here.
    Source:     SSKD's code (student.py, wrapper.py, cifar.py); supplement 2-4 for the pool.
    """

    paper = "Xu, Liu, Li, Loy. Knowledge Distillation Meets Self-Supervision. ECCV 2020"
    reads = "logits and embedding of images and of their transformed copies"
    requires = ("transforms_of_the_pretext", "images_of_the_pretext", "something_to_learn")
    part = ("pretext", "transforms")
    views = 3
    version = 1

    def __init__(
        self,
        context: TermContext,
        *,
        pretext: Literal["contrastive", "exemplar", "jigsaw", "rotation"] = "contrastive",
        transforms: Literal["rotations", "four"] = "rotations",
        transformed_weight: NonNegative = 2.7,
        pretext_weight: NonNegative = 10.0,
        temperature: PositiveNumber = 4.0,
        pretext_temperature: PositiveNumber = 0.5,
        kept_transformed: Share = 1.0,
        kept_pretext: Share = 0.75,
    ) -> None:
        super().__init__(context)
        trained = self.trained_part(SelfSupervised)
        if pretext == "exemplar" and trained.width != context.train_size:
            raise BadInput(
                f"sskd: the teacher's head tells {trained.width} training images apart, and the student has "
                f"{context.train_size}: use the pretext 'exemplar' with the whole training set"
            )
        width = context.student.embedding if pretext == "contrastive" else trained.width
        self.task, self.teacher_scores = trained.task, trained.scores
        self.transforms = trained.transforms
        self.head = head(context.student.embedding, width)
        self.transformed = transformed_weight, temperature, kept_transformed
        self.pretext = pretext_weight, pretext_temperature, kept_pretext

    @classmethod
    def build_part(cls, context: TermContext, options: Mapping[str, Any]) -> Part:
        """The head that learns the task on the teacher's embedding."""
        task = pretext(options["pretext"], options["transforms"])
        return SelfSupervised(task, context.teacher.embedding, context.train_size)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum of both losses."""
        labels = batch.labels.repeat_interleave(VIEWS_PER_IMAGE)
        weight, temperature, share = self.transformed
        loss = weight * transfer_loss(views_in(student.logits), views_in(teacher.logits), labels, temperature, share)
        weight, temperature, share = self.pretext
        ours, theirs = scores(self.head, self.task, student.embedding), self.teacher_scores(teacher)
        return loss + weight * transfer_loss(ours, theirs, self.task.answers(batch), temperature, share)


@in_float32
def transfer_loss(student: Tensor, teacher: Tensor, answers: Tensor, temperature: float, share: float) -> Tensor:
    """KL(teacher || student) times temperature² over the kept rows of scores [R, K]; answers [R] are the right ones."""
    keep = top_fraction_mask(ranks(teacher, answers), share)
    rows = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="none",
        log_target=True,
    ).sum(1)
    return (rows * keep).sum() / keep.sum().clamp(min=1) * temperature**2


@torch.no_grad()
def ranks(scores: Tensor, answers: Tensor) -> Tensor:
    """[R]: the position of each right answer in its row of scores [R, K], the highest first; of equal scores the earlier."""
    right = scores.gather(1, answers.unsqueeze(1))
    earlier = torch.arange(scores.shape[1], device=scores.device) < answers.unsqueeze(1)
    return torch.where(earlier, scores >= right, scores > right).sum(1)


@torch.no_grad()
def top_fraction_mask(ranks: Tensor, share: float) -> Tensor:
    """[R] bool: the rows of rank 0, and a share of the others, rounded down, by rank; of equal ranks the earlier rows."""
    wrong = (ranks > 0).sum()
    count = len(ranks) - wrong + (wrong.double() * share).floor()
    place = ranks.argsort(stable=True).argsort()
    return place < count
