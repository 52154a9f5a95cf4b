"""The last stage of a network by itself."""

import pytest
import torch

from kdbench.catalogue.networks import network, networks
from kdbench.models import build
from kdbench.models.heads import Branch, NodeEmbedding


STUDENTS = [name for name, net in networks().items() if net.classifier]
LARGER = {
    *("resnet32x4", "resnet34", "resnet44", "resnet56", "resnet110", "resnet18-double", "cifar-resnet34"),
    *("vgg16", "vgg19", "rn101", "wrn-40-2"),
}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in LARGER else ()) for name in STUDENTS]
"""Networks whose blocks a smaller one has too are slow tests."""
SIZES = {
    "vgg8": [(64, 64), (65, 48), (66, 66), (71, 32), (72, 64), (48, 66)],
    "resnet18": [(64, 64)],
    "mobilenetv2": [(64, 64)],
}
"""Height and width beside two that all networks are tried with."""


def of(name, node=None):
    torch.manual_seed(1)
    net = build(name, 7)
    net = NodeEmbedding(net, classes=7, width=5) if node else net
    for module in net.modules():  # statistics and scales by which an error shows
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            torch.nn.init.normal_(module.bias, std=0.1)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_where_the_network_was_cut(name):
    net, branch = of(name), Branch(of(name))
    for size in [(32, 32), (33, 17), *SIZES.get(name, [])]:
        outputs = net(torch.randn(2, 3, *size))
        shared = outputs.features[-2]
        before = shared.clone()
        assert torch.allclose(branch(shared), outputs.logits, atol=1e-5)
        assert torch.equal(shared, before)


@torch.no_grad()
def test_with_a_node_embedding():
    outputs = of("wrn-10-1", node=True)(torch.randn(2, 3, 32, 32))
    assert torch.allclose(Branch(of("wrn-10-1", node=True))(outputs.features[-2]), outputs.logits, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_holds_what_lies_behind_the_map_and_nothing_else(name):
    """Every parameter gets a gradient from the logits; those of the rest of the network are gone."""
    with torch.device("meta"):
        net = build(name, 7)
        whole = {key for key, _ in net.named_parameters()}
        branch = Branch(net).train()
        channels, stride = network(name).features[-2]
        branch(torch.empty(2, channels, 64 // stride, 64 // stride)).sum().backward()
    own = dict(branch.network.named_parameters())
    assert own.keys() < whole
    assert own.keys() == {key for key in whole if key.startswith(tuple(f"{part}." for part in net.final_modules()))}
    assert all(parameter.grad is not None for parameter in own.values())
