"""How alike two networks are: in their maps, embeddings, class probabilities and classifiers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two networks' features of the same images (Kornblith et al., ICML 2019), in float64.

    |XᵀY|² / ( |XᵀX| · |YᵀY| ) with Frobenius norms, columns centred. It lies between 0 and 1; nan where one side is the same
    for all images.

    x, y: [N, D1] and [N, D2]
    """
    x, y = _centred(x), _centred(y)
    if len(x) > max(x.shape[1], y.shape[1]):
        shared, own, other = (x.T @ y).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    else:
        gram_x, gram_y = x @ x.T, y @ y.T
        shared, own, other = (gram_x * gram_y).sum(), gram_x.norm(), gram_y.norm()
    return float(shared / (own * other))


def _centred(features: Tensor) -> Tensor:
    """Float64 features less their mean; exactly 0 where nothing but rounding is left."""
    wide = features.double()
    rest = wide - wide.mean(0)
    return rest if rest.norm() > 1e-12 * wide.norm() else torch.zeros_like(rest)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(teacher ‖ student) at a temperature, times its square: a float64 scalar.

    student_logits, teacher_logits: [N, K]
    """
    ours, theirs = (F.log_softmax(each.double() / temperature, 1) for each in (student_logits, teacher_logits))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def class_correlation(weight: Tensor) -> Tensor:
    """Cosines between the classes of a linear classifier (SSKD, supplement, Fig. 1): [K, D] → [K, K]."""
    rows = F.normalize(weight, dim=1)
    return rows @ rows.T
