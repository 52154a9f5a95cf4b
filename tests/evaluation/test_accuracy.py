"""Accuracy against counting by hand."""

import math

import pytest
import torch
from torch import nn

from kdbench.evaluation import measure, measure_neighbours
from kdbench.models.outputs import Outputs


class Fixed(nn.Module):
    """Gives the images themselves as logits."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        return Outputs(self.factor * images, images, [], [])


@pytest.mark.parametrize("classes", [2, 5, 6, 20])
def test_top1_and_top5_against_a_slow_count(classes):
    draw = torch.Generator().manual_seed(classes)
    batches = [
        (torch.randn(n, classes, generator=draw), torch.randint(0, classes, (n,), generator=draw)) for n in (7, 7, 3)
    ]
    networks = [Fixed(), Fixed(-1.0)]
    for factor, scores in zip((1, -1), measure(networks, batches), strict=True):
        first = fifth = 0
        for logits, labels in batches:
            for row, label in zip((factor * logits).tolist(), labels.tolist(), strict=True):
                order = sorted(range(classes), key=lambda k, row=row: -row[k])
                first += order[0] == label
                fifth += label in order[:5]
        assert scores.top1 == pytest.approx(100 * first / 17)
        assert scores.top5 == pytest.approx(100 * fifth / 17)
        assert classes > 5 or scores.top5 == 100.0


def test_without_networks_there_is_nothing_to_measure():
    assert measure([], [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))]) == []


def test_test_time_leaves_batch_norm_as_it_was():
    from kdbench.models import build

    network = build("resnet8", 10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    measure([network], [(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))])
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("known", [12, 60])
def test_the_twenty_nearest_training_images_vote_with_weights(known):
    """By hand: exp(cosine / 0.07) each, and all of the training images where they are fewer."""
    draw = torch.Generator().manual_seed(0)
    train = torch.randn(known, 5, generator=draw), torch.randint(0, 7, (known,), generator=draw)
    test = torch.randn(300, 5, generator=draw), torch.randint(0, 7, (300,), generator=draw)
    batches = [(test[0][:200], test[1][:200]), (test[0][200:], test[1][200:])]
    (scores,) = measure_neighbours([Fixed()], [train], batches, 7)
    first = fifth = 0
    for image, label in zip(*test, strict=True):
        cosine = nn.functional.cosine_similarity(image[None], train[0])
        votes = [0.0] * 7
        for index in cosine.argsort(descending=True)[:20].tolist():
            votes[train[1][index]] += math.exp(cosine[index] / 0.07)
        order = sorted(range(7), key=lambda k: -votes[k])
        first += order[0] == int(label)
        fifth += label in order[:5]
    assert (scores.top1, scores.top5) == pytest.approx((100 * first / 300, 100 * fifth / 300))
