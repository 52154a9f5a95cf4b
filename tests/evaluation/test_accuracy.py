"""Accuracy against counting by hand."""

import pytest
import torch
from torch import nn

from kdbench.evaluation import measure
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
