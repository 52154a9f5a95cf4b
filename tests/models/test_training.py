"""One step of training: sizes, gradients through every exposed map, initial weights, batch norm's counters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.catalogue.networks import networks
from kdbench.models import build


SMALL = ("resnet8", "wrn-16-1", "vgg8")
SIZES = [(name, size, classes) for name in SMALL for size in (32, 64, 96) for classes in (10, 100, 200)]
OTHERS = [(name, 32, 100) for name in networks() if name not in SMALL and name != "resnet110"]


@pytest.mark.parametrize(("name", "size", "classes"), [*SIZES, *OTHERS])
def test_one_step_keeps_the_batch_and_reaches_every_parameter(name, size, classes):
    net = build(name, classes)
    outputs = net(torch.randn(2, 3, size, size))
    assert outputs.logits.shape == (2, classes)
    assert {len(each) for each in (outputs.embedding, *outputs.features, *outputs.preactivations)} == {2}
    assert [each.shape for each in outputs.preactivations] == [each.shape for each in outputs.stages]

    maps = [*outputs.features, *outputs.preactivations, outputs.embedding]
    loss = F.cross_entropy(outputs.logits, torch.tensor([0, classes - 1])) + sum(each.square().mean() for each in maps)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_the_same_network_without_in_place_operations(name, monkeypatch):
    net, images = build(name, 10).eval(), torch.randn(2, 3, 32, 32)

    def gradients():
        net.zero_grad()
        outputs = net(images)
        sum(each.square().mean() for each in (outputs.logits, *outputs.features, *outputs.preactivations)).backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    fast = gradients()
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: relu(x))
    monkeypatch.setattr(torch.Tensor, "add_", torch.Tensor.add)
    assert all(torch.equal(a, b) for a, b in zip(fast, gradients(), strict=True))


@pytest.mark.parametrize("name", ["resnet14", "vgg13"])
def test_features_are_the_preactivations_after_relu(name):
    outputs = build(name)(torch.randn(2, 3, 32, 32))
    for before, after in zip(outputs.preactivations, outputs.stages, strict=True):
        assert before.min() < 0
        assert torch.equal(F.relu(before), after)


@pytest.mark.parametrize("name", ["wrn-16-1", "wrn-40-2"])
def test_one_forward_updates_each_batch_norm_once(name):
    net = build(name)
    net(torch.randn(2, 3, 32, 32))
    assert {m.num_batches_tracked.item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


def test_wide_resnets_expose_the_following_batch_norms_output():
    net = build("wrn-16-2").eval()
    outputs = net(torch.randn(2, 3, 32, 32))
    following = (net.block2.layer[0].bn1, net.block3.layer[0].bn1, net.bn1)
    for norm, stage, before in zip(following, outputs.stages, outputs.preactivations, strict=True):
        assert torch.equal(norm(stage), before)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn-16-2", "vgg8"])
def test_initial_weights(name):
    net = build(name)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            torch.testing.assert_close(module.weight.std().item(), (2 / fan_out) ** 0.5, rtol=0.1, atol=0)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    head = getattr(net, net.classifier_name)
    std = 0.01 if name == "vgg8" else (1 / (3 * net.width)) ** 0.5
    torch.testing.assert_close(head.weight.std().item(), std, rtol=0.05, atol=0)
    assert bool(head.bias.any()) == (name == "resnet8x4")
