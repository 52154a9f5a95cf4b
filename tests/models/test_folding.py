"""Batch normalisation folded into the convolution before it."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from kdbench.errors import KdbenchError
from kdbench.models import build
from kdbench.models.backbone import Backbone
from kdbench.models.folding import fold_batch_norm
from kdbench.models.outputs import Outputs


def trained(network):
    """Statistics and scales as training leaves them, away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet20", 0),
        ("resnet8x4", 0),
        ("wrn-16-2", 7),
        ("vgg13", 0),
        ("resnet50", 0),
        ("mobilenetv2", 0),
        ("shufflenetv1", 0),
        ("shufflenetv2", 0),
    ],
)
def test_outputs_stay_and_batch_normalisation_goes(name, left):
    """A wide ResNet normalises sums, too: those norms stay."""
    network = trained(build(name, 10))
    folded = fold_batch_norm(network, 32)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = tree_leaves(network(images)), tree_leaves(folded(images))
    for one, other in zip(after, before, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Peeking(Backbone):
    """Reads a convolution's output before its normalisation, too, or the convolution's weight."""

    width = 4

    def __init__(self, *, weight=False):
        super().__init__()
        self.conv, self.bn, self.fc, self.weight = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), weight

    def forward(self, images):
        x = self.conv(images)
        more = self.conv.weight.mean() if self.weight else x
        embedding = (more + self.bn(x)).mean((2, 3))
        return Outputs(self.fc(embedding), embedding, [], [])


def test_what_something_else_reads_stays():
    folded = fold_batch_norm(trained(Peeking()), 8)
    assert isinstance(folded.bn, nn.BatchNorm2d)


def test_a_network_that_reads_weights_elsewhere_is_refused():
    with pytest.raises(KdbenchError, match=r"Peeking: its outputs change .* Leave teacher_inference out"):
        fold_batch_norm(trained(Peeking(weight=True)), 8)
