"""Evaluation: top-1 and top-5 accuracy, nearest-neighbour votes, similarity between teacher and student."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models.outputs import LayerPair


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent. With fewer than five classes, top5 counts all of them."""

    top1: float
    top5: float


@torch.no_grad()
def measure(
    networks: Sequence[nn.Module],
    test: Iterable[tuple[Tensor, Tensor]],
    add_up: Callable[[list[int]], list[int]] = list,
) -> list[Scores]:
    """Test several networks in one pass over the test set. They are left in eval mode.

    add_up: where ``test`` is a part of the set, adds counts to those of the other parts
    """
    if not networks:
        return []
    for network in networks:
        network.eval()
    totals: list[Tensor | int] = [0] * len(networks)
    count = 0
    for images, labels in test:
        count += len(labels)
        for index, network in enumerate(networks):
            totals[index] = totals[index] + count_hits(network(images).logits, labels)
    own = [hits for total in totals for hits in (total.tolist() if isinstance(total, Tensor) else (0, 0))]
    *hits, count = add_up([*own, count])
    pairs = zip(hits[::2], hits[1::2], strict=True)
    return [Scores(100 * first / count, 100 * fifth / count) for first, fifth in pairs]


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """[2] int64: how many labels are the first, and among the first five, of the classes."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = top == labels[:, None]
    return torch.stack([right[:, 0].sum(), right.sum()])


NEIGHBOURS, TEMPERATURE = 20, 0.07
"""As Wu et al. (CVPR 2018) weigh neighbours, with 20 of them for their 200: the embedded digits have 100 of each class."""


@torch.no_grad()
def measure_neighbours(
    networks: Sequence[nn.Module],
    train: Iterable[tuple[Tensor, Tensor]],
    test: Iterable[tuple[Tensor, Tensor]],
    classes: int,
) -> list[Scores]:
    """Top-1 and top-5 of a vote among the nearest training images by cosine, weighted by exp(cosine / 0.07).

    The networks are left in eval mode.
    """
    return [_measure(network.eval(), train, test, classes) for network in networks]


def _measure(
    network: nn.Module, train: Iterable[tuple[Tensor, Tensor]], test: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Scores:
    known = [(_unit(network, images), labels) for images, labels in train]
    embeddings, labels = map(torch.cat, zip(*known, strict=True))
    total, count = torch.zeros(2, dtype=torch.int64, device=labels.device), 0
    for images, right in test:
        cosine, nearest = (_unit(network, images) @ embeddings.T).topk(min(NEIGHBOURS, len(labels)), dim=1)
        votes = torch.zeros(len(right), classes, device=labels.device)
        votes.scatter_add_(1, labels[nearest], (cosine / TEMPERATURE).exp())
        total += count_hits(votes, right)
        count += len(right)
    first, fifth = total.tolist()
    return Scores(100 * first / count, 100 * fifth / count)


def _unit(network: nn.Module, images: Tensor) -> Tensor:
    embedding: Tensor = network(images).embedding
    return F.normalize(embedding.float(), dim=1)


FEWEST = 4
"""The unbiased estimator of HSIC is defined for so many images or more."""
ROUNDING = 1e-6
"""So much of a Gram matrix may be what float32 products are rounded by."""


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


def is_constant(features: Tensor) -> bool:
    """Whether a network gives the same for all images, but for rounding: features [N, D]."""
    return bool(features.isfinite().all()) and not _centred(features).any()


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


class LayerSimilarity:
    """SM-score and CKA of the maps that a run's terms associate, over the slices of a test set.

    SM-score:   ln of the mean over images and over associated pairs of  w[b] · mean over b' of ( A_s - A_t )²[b, b'],
                A = X·Xᵀ of the flattened maps as the networks give them, w = 1 or the pair's weight (SemCKD, eq. 18).
                It depends on how many images a slice has.
    Layer CKA:  mean over the pairs, each by the mean of its w, of the linear CKA of what the term compares: a term's own
                projections of the student's map count as the student's. HSIC is the unbiased estimate of each slice,
                averaged over slices before the quotient is taken (Nguyen, Raghu, Kornblith, ICLR 2021).

    Slices count by their images; one of fewer than four is left out. Gram matrices are of float32, all else of float64.
    """

    def __init__(self) -> None:
        self._images = 0
        self._sums: Tensor | float = 0.0

    @torch.no_grad()
    def add(self, pairs: Sequence[LayerPair]) -> None:
        """Take in a slice's pairs: the same ones, in the same order, as those of the slices before."""
        images = len(pairs[0].student)
        if images < FEWEST:
            return
        compared = [pair.compared or pair[:2] for pair in pairs]
        raw = {key: _gram(maps) for key, maps in _by_id([*(pair[:2] for pair in pairs), *compared]).items()}
        centred = {key: u_centred(raw[key]) for key in _by_id(compared)}
        rows = []
        for (student, teacher, weight, _), (ours, theirs) in zip(pairs, compared, strict=True):
            distance = (raw[id(student)] - raw[id(teacher)]).square().mean(1)
            weight = torch.ones_like(distance) if weight is None else weight.double()
            x, y = centred[id(ours)], centred[id(theirs)]
            hsic = torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()]) / (images * (images - 3))
            rows.append(torch.stack([(weight * distance).mean(), weight.mean(), *hsic]))
        self._images += images
        self._sums = self._sums + images * torch.stack(rows)

    def scores(self) -> dict[str, float]:
        """``sm_score`` and ``layer_cka``, as far as they are numbers: constant maps have no CKA, equal ones no SM-score."""
        if not self._images or not isinstance(self._sums, Tensor):
            return {}
        mismatch, weight, shared, own, other = (self._sums / self._images).T.cpu()
        sm_score = mismatch.mean().log().item()
        layer_cka = ((weight * shared / (own * other).sqrt()).sum() / weight.sum()).item()
        return {k: v for k, v in {"sm_score": sm_score, "layer_cka": layer_cka}.items() if math.isfinite(v)}


def _by_id(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
    """Each map once, however many pairs it is in."""
    return {id(maps): maps for pair in pairs for maps in pair}


def _gram(maps: Tensor) -> Tensor:
    """Gram matrix [B, B] of flattened maps [B, …]: products in float32, the result in float64."""
    # the order of the columns does not matter, and flattening channels-last maps channels first would copy them
    rows = (maps if maps.is_contiguous() else maps.movedim(1, -1)).flatten(1).float()
    return (rows @ rows.T).double()


def u_centred(gram: Tensor) -> Tensor:
    """A Gram matrix [n, n] whose products with others, summed and divided by n·(n-3), are the unbiased estimate of HSIC.

    The diagonal is 0 and each row and column sums to 0 (Song et al., JMLR 2012; Székely and Rizzo, 2014). The matrix is 0
    where nothing but rounding is left.
    """
    n = len(gram)
    hollow = gram - gram.diag().diag()
    means = hollow.sum(0) / (n - 2)
    rest = hollow - means - means[:, None] + means.sum() / (n - 1)
    rest = rest - rest.diag().diag()
    return torch.where(rest.norm() > ROUNDING * gram.norm(), rest, 0.0)
