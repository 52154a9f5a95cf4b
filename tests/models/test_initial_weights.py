"""First weights are drawn from the authors' distributions."""

import math
import sys

import pytest
import torch
from torch import nn

from kdbench.catalogue.networks import network
from kdbench.models import build
from kdbench.models.heads import NodeEmbedding


NETWORKS = (
    "resnet20", "resnet32", "resnet56", "resnet110", "resnet8x4", "resnet32x4", "wrn-16-1", "wrn-16-2", "wrn-40-1",
    "wrn-40-2", "vgg8", "vgg13", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet50", "shufflenetv2x0.5",
)  # fmt: skip
SAMPLE = 20_000
"""So many of a tensor's weights are looked at."""


def default(module):
    """PyTorch's: uniform, within one by the root of the fan-in."""
    return "uniform", 1 / math.sqrt(module.weight[0].numel())


def he(module):
    """Normal, over the fan-out; groups do not divide it."""
    return "normal", math.sqrt(2 / (module.weight.shape[0] * module.weight[0, 0].numel()))


def small(module):
    return "normal", 0.01


def zero(module):
    return "constant", 0.0


# builder → the authors' laws of a convolution's weight and bias, and of the classifier's
LAWS = {
    "resnet": (he, None, default, default),
    "resnet50": (he, None, default, default),
    "wrn": (he, None, default, zero),
    "vgg": (he, zero, small, zero),
    "mobilenetv2": (he, None, small, zero),
    "shufflenetv1": (default, None, default, default),
    "shufflenetv2": (default, None, default, default),
    "imagenet_shufflenetv2": (default, None, default, default),
}


def laws(net, builder):
    """(name, values, kind, scale) of every parameter."""
    convolution, convolution_bias, linear, linear_bias = LAWS[builder]
    for path, module in net.named_modules():
        match module:
            case nn.Conv2d():
                found = {"weight": convolution, "bias": convolution_bias}
            case nn.Linear():
                found = {"weight": linear, "bias": linear_bias}
            case nn.BatchNorm2d():
                found = {"weight": lambda _: ("constant", 1.0), "bias": zero}
            case _:
                found = {}
        for name, parameter in module.named_parameters(recurse=False):
            yield (f"{path}.{name}", parameter.detach().flatten()[:SAMPLE].double(), *found[name](module))


def deviation(values, kind):
    """By how many standard errors the means of x, x² and x⁴ differ from the law's, the largest of the three."""
    square = values.square()
    mean, second, fourth = (x.mean().item() for x in (values, square, square.square()))
    expected_second, expected_fourth, eighth = {"normal": (1, 3, 105), "uniform": (1 / 3, 1 / 5, 1 / 9)}[kind]
    errors = [
        (mean, expected_second),
        (second - expected_second, expected_fourth - expected_second**2),
        (fourth - expected_fourth, eighth - expected_fourth**2),
    ]
    return max(abs(error) / math.sqrt(variance / len(values)) for error, variance in errors)


@pytest.mark.parametrize("name", NETWORKS)
def test_first_weights(name):
    torch.manual_seed(5)
    net = build(name)
    check(laws(net, network(name).builder), count=len(list(net.parameters())))


def test_first_weights_of_a_node_embedding():
    torch.manual_seed(5)
    *_, node, classifier = NodeEmbedding(build("resnet8x4"), classes=100, width=256).children()
    check(laws(nn.Sequential(node, classifier), "shufflenetv1"), count=4)


def check(laws, count):
    """Each tensor follows its law within six standard errors, all that follow one law together within four."""
    pooled = {"normal": [], "uniform": []}
    seen = 0
    for name, values, kind, scale in laws:
        seen += 1
        if kind == "constant":
            assert (values == scale).all(), name
            continue
        values = values / scale
        if kind == "uniform":
            assert values.abs().max() <= 1 + 1e-6, name
        assert deviation(values, kind) < 6, name
        pooled[kind].append(values)
    assert seen == count
    for kind, values in pooled.items():
        assert not values or deviation(torch.cat(values), kind) < 4


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_alone_need_no_compiler(name, monkeypatch):
    """Its import takes over a second of a worker's start."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    with torch.device("meta"):
        assert all(each.is_meta for each in build(name, 10).parameters())
