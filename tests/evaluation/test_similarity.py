"""Similarity of networks: known values, invariances, and slow loops that say the same."""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.evaluation import LayerSimilarity, class_correlation, kl_divergence, linear_cka
from kdbench.models.outputs import LayerPair


GOLDEN = np.load(Path(__file__).with_name("linear_cka.npz"))
X, Y = torch.from_numpy(GOLDEN["in.x"]), torch.from_numpy(GOLDEN["in.y"])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Linear CKA


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_linear_cka_is_the_published_value(shift):
    assert linear_cka(X + shift, Y) == pytest.approx(GOLDEN["out.loss"].item(), rel=1e-9)


def test_both_ways_of_computing_it_agree():
    wide = torch.cat([Y, torch.zeros(64, 60, dtype=Y.dtype)], 1)  # 84 columns: the Gram side
    assert linear_cka(X, wide) == pytest.approx(linear_cka(X, Y), rel=1e-12)


@pytest.mark.parametrize("images", [8, 200])
def test_rotation_and_scale_change_nothing_other_maps_do(images):
    x, y = drawn(images, 12), drawn(images, 20, seed=1)
    turn, _ = torch.linalg.qr(drawn(12, 12, seed=2))
    cka = linear_cka(x, y)
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(y, x) == pytest.approx(cka)
    assert linear_cka(7 * x @ turn, y) == pytest.approx(cka, rel=1e-5)
    assert linear_cka(x, x @ turn) == pytest.approx(1)
    assert abs(linear_cka(x * torch.arange(1.0, 13), y) / cka - 1) > 0.01


def test_features_that_are_the_same_for_all_images_have_no_cka():
    constant = drawn(1, 12).expand(50, -1) / 3
    assert math.isnan(linear_cka(constant, drawn(50, 8)))
    assert math.isnan(linear_cka(drawn(5, 8), constant[:5]))


# Probabilities and classifiers


def test_kl_is_zero_with_itself_and_the_sum_by_hand_otherwise():
    ours, theirs = 5 * drawn(6, 4), 5 * drawn(6, 4, seed=1)
    assert kl_divergence(ours, ours, 4.0).item() == 0
    assert kl_divergence(ours, ours + 3, 1.0).item() == pytest.approx(0, abs=1e-6)
    q, p = (torch.softmax(each.double() / 2, 1) for each in (ours, theirs))
    expected = (p * (p / q).log()).sum(1).mean() * 4
    assert kl_divergence(ours, theirs, 2.0).item() == pytest.approx(expected.item())
    assert kl_divergence(theirs, ours, 2.0).item() != pytest.approx(expected.item())
    assert math.isfinite(kl_divergence(1000 * ours, theirs, 1.0).item())


def test_class_correlation_is_the_cosine_of_classes():
    weight = drawn(5, 7)
    found = class_correlation(weight * torch.arange(1.0, 6)[:, None])
    for a, b in permutations(range(5), 2):
        assert found[a, b] == pytest.approx(torch.cosine_similarity(weight[a], weight[b], dim=0).item(), abs=1e-6)
    assert torch.allclose(found.diag(), torch.ones(5))
    assert class_correlation(torch.zeros(2, 3)).tolist() == [[0, 0], [0, 0]]


# Layers


def slow_sm_score(slices):
    """ln of the mean, over images and pairs, of weighted squared differences of inner products, one by one."""
    total = count = 0
    for pairs in slices:
        for student, teacher, weight, _ in pairs:
            n = len(student)
            for a in range(n):
                row = [
                    ((student[a] * student[b]).sum() - (teacher[a] * teacher[b]).sum()).item() ** 2 for b in range(n)
                ]
                total += (1 if weight is None else weight[a].item()) * sum(row) / n / len(pairs)
        count += len(pairs[0].student)
    return math.log(total / count)


def slow_hsic(x, y):
    """Song et al.'s unbiased estimate, from its formula."""
    n = len(x)
    k, m = (each.double().flatten(1) @ each.double().flatten(1).T for each in (x, y))
    k, m = (each - each.diag().diag() for each in (k, m))
    one = torch.ones(n, dtype=torch.float64)
    first = (k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def slow_layer_cka(slices):
    pairs, weights = [], []
    for position in range(len(slices[0])):
        chosen = [each[position] for each in slices]
        maps = [pair.compared or pair[:2] for pair in chosen]
        sizes = torch.tensor([len(x) for x, _ in maps], dtype=torch.float64)
        kinds = ((0, 1), (0, 0), (1, 1))
        values = [torch.stack([slow_hsic(pair[a], pair[b]) for pair in maps]) @ sizes / sizes.sum() for a, b in kinds]
        pairs.append((values[0] / (values[1] * values[2]).sqrt()).item())
        alpha = [torch.ones(len(pair.student)) if pair.weight is None else pair.weight for pair in chosen]
        weights.append(torch.cat(alpha).mean().item())
    return sum(w * p for w, p in zip(weights, pairs, strict=True)) / sum(weights)


def made_slices(sizes, weighted, projected):
    slices = []
    for seed, n in enumerate(sizes):
        # not negative, like the maps of networks, and related to each other
        sources = [drawn(n, c, 4, 4, seed=seed).relu() + 1 for c in (3, 5)]
        targets = [torch.cat([each, drawn(n, 2, 4, 4, seed=9 + seed).relu()], 1) for each in sources]
        weights = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed)) if weighted else None
        slices.append(
            [
                LayerPair(
                    s,
                    t,
                    None if weights is None else weights[:, i, j],
                    (s.square(), t[:, :, ::2]) if projected else None,
                )
                for i, s in enumerate(sources)
                for j, t in enumerate(targets)
            ]
        )
    return slices


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_layer_similarity_against_slow_loops(weighted, projected):
    slices = made_slices((6, 6, 5), weighted, projected)
    similarity = LayerSimilarity()
    for pairs in (*slices, made_slices((3,), weighted, projected)[0]):  # three images are too few
        similarity.add(pairs)
    scores = similarity.scores()
    assert scores["sm_score"] == pytest.approx(slow_sm_score(slices), rel=1e-5)
    assert scores["layer_cka"] == pytest.approx(slow_layer_cka(slices), rel=1e-5)
    assert 0.1 < scores["layer_cka"] < 1


def test_the_slices_together_estimate_the_cka_of_all_images():
    x = drawn(4000, 6)
    y = x @ drawn(6, 9, seed=1) + 2 * drawn(4000, 9, seed=2)
    similarity = LayerSimilarity()
    for part in range(0, 4000, 16):
        similarity.add([LayerPair(x[part : part + 16], y[part : part + 16])])
    assert similarity.scores()["layer_cka"] == pytest.approx(linear_cka(x, y), abs=0.01)


def test_half_precision_maps_are_widened():
    maps = 100 * drawn(8, 4, 16, 16).relu()
    similarity = LayerSimilarity()
    similarity.add([LayerPair(maps.half(), maps.half())])  # inner products reach 5e6, half precision ends at 65504
    assert similarity.scores() == {"layer_cka": pytest.approx(1)}


def test_what_is_no_number_is_left_out():
    varied, constant = drawn(8, 5), (drawn(1, 5) / 3).expand(8, -1)
    for pair, known in (((varied, varied), {"layer_cka"}), ((varied, constant), {"sm_score"})):
        similarity = LayerSimilarity()
        similarity.add([LayerPair(*pair)])
        assert similarity.scores().keys() == known
    assert LayerSimilarity().scores() == {}


def test_the_layout_of_maps_in_memory_does_not_matter():
    maps, others = drawn(16, 6, 8, 8).relu(), drawn(16, 3, 8, 8, seed=1).relu()
    scores = []
    for layout in (torch.contiguous_format, torch.channels_last):
        similarity = LayerSimilarity()
        similarity.add([LayerPair(maps.contiguous(memory_format=layout), others)])
        scores.append(similarity.scores())
    assert scores[1] == {key: pytest.approx(value, rel=1e-5) for key, value in scores[0].items()}


def test_maps_that_are_nearly_constant_are_told_apart_all_the_same():
    x = drawn(64, 2000) / 10
    y = x @ drawn(2000, 50, seed=1) / 40 + drawn(64, 50, seed=2)
    similarity, exact = LayerSimilarity(), LayerSimilarity()
    similarity.add([LayerPair(x + 5, y)])  # 0.04 % of the squares are what differs from the mean
    exact.add([LayerPair(x, y)])
    assert similarity.scores()["layer_cka"] == pytest.approx(exact.scores()["layer_cka"], abs=1e-3)
