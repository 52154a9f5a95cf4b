"""One step of training: sizes, gradients through every exposed map, initial weights, batch norm's counters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.catalogue.networks import networks
from kdbench.models import build
from kdbench.models.backbone import shuffle_channels


LIGHT = {
    "resnet": "resnet8",
    "wrn": "wrn-16-1",
    "vgg": "vgg8",
    "mobilenetv2": "mobilenetv2",
    "shufflenetv1": "shufflenetv1",
    "shufflenetv2": "shufflenetv2",
    "imagenet_resnet": "resnet18",
    "imagenet_shufflenetv2": "shufflenetv2x0.5",
}
"""One cheap network of each builder but resnet50's."""
LARGER = {
    "resnet32x4",
    "resnet34",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet18-double",
    "cifar-resnet34",
    "vgg16",
    "vgg19",
    "rn101",
}
"""Networks whose blocks a shallower or narrower one of the same builder has too, and that take long."""
SEVERAL_SIZES = {*LIGHT.values(), "vgg13", "resnet50", "rn50", "cifar-resnet18"}
"""Networks of all kinds of blocks, stems and last poolings."""
SIZES, CLASSES = (32, 64, 96), (10, 100, 200)


def cases():
    """Networks at the smallest size, and those of SEVERAL_SIZES at all, each time with other classes."""
    for row, name in enumerate(net.name for net in networks().values() if net.classifier):
        for column, size in enumerate(SIZES if name in SEVERAL_SIZES else SIZES[:1]):
            quick = name in LIGHT.values() or (size == SIZES[0] and name not in LARGER)
            yield pytest.param(name, size, CLASSES[(row + column) % 3], marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "size", "classes"), list(cases()))
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


@pytest.mark.parametrize("name", ["clip-vit-b32", "clip-rn50"])
@pytest.mark.parametrize("device", ["meta", pytest.param("cpu", marks=pytest.mark.slow)])
def test_one_step_reaches_every_parameter_of_an_encoder(name, device):
    with torch.device(device):
        net = build(name).eval()
        outputs = net(torch.randn(1, 3, 224, 224))
    sum(each.square().mean() for each in (*outputs.features, outputs.logits)).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert device == "meta" or all(gradient.isfinite().all() for gradient in gradients)


def test_every_builder_is_represented():
    assert {known.builder for known in networks().values()} == {*LIGHT, "resnet50", "clip"}


@pytest.mark.parametrize("name", [*LIGHT.values(), "resnet50"])
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


@pytest.mark.parametrize("name", ["resnet14", "vgg13", "shufflenetv1", "resnet50", "resnet18", "rn50"])
def test_features_are_the_preactivations_after_relu(name):
    outputs = build(name)(torch.randn(2, 3, 32, 32))
    for before, after in zip(outputs.preactivations, outputs.stages, strict=True):
        assert before.min() < 0
        assert torch.equal(F.relu(before), after)


def test_shufflenetv2_exposes_the_maps_before_relu_and_shuffle():
    outputs = build("shufflenetv2")(torch.randn(2, 3, 32, 32))
    for before, after in zip(outputs.preactivations, outputs.stages, strict=True):
        assert before.min() < 0
        assert torch.equal(torch.stack(F.relu(before).chunk(2, dim=1), dim=2).flatten(1, 2), after)


@pytest.mark.parametrize(("name", "signed"), [("mobilenetv2", True), ("shufflenetv2x0.5", False)])
def test_stages_without_a_last_activation_of_their_own_give_their_maps_twice(name, signed):
    outputs = build(name)(torch.randn(2, 3, 32, 32))
    for before, after in zip(outputs.preactivations, outputs.stages, strict=True):
        assert before is after
        assert (after.min() < 0) == signed


@pytest.mark.parametrize("name", ["wrn-16-1", "wrn-40-2", *LIGHT.values()])
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


@pytest.mark.parametrize("name", ["resnet8x4", "wrn-16-2", "vgg8", "mobilenetv2", "resnet50", "resnet18"])
def test_initial_weights(name):
    net = build(name)
    assert_initial(net, lambda weight: 2 / (weight.shape[0] * weight[0, 0].numel()))
    assert all(not m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)
    (head,) = (m for m in getattr(net, net.classifier_name).modules() if isinstance(m, nn.Linear))
    std = 0.01 if name in ("vgg8", "mobilenetv2") else (1 / (3 * net.width)) ** 0.5
    torch.testing.assert_close(head.weight.std().item(), std, rtol=0.05, atol=0)
    assert bool(head.bias.any()) == name.startswith("resnet")


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2", "shufflenetv2x0.5"])
def test_shufflenets_start_from_pytorchs_defaults(name):
    net = build(name)
    assert_initial(net, lambda weight: 1 / (3 * weight[0].numel()))
    head = getattr(net, net.classifier_name)
    torch.testing.assert_close(head.weight.std().item(), (1 / (3 * net.width)) ** 0.5, rtol=0.05, atol=0)


def assert_initial(net, variance):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            spread = max(0.02, 4 / (2 * weight.numel()) ** 0.5)
            torch.testing.assert_close(weight.std().item(), variance(weight) ** 0.5, rtol=spread, atol=0)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channels_are_shuffled_as_by_torch_and_stay_last_in_memory(groups):
    x = torch.randn(2, 12, 4, 5).to(memory_format=torch.channels_last)
    shuffled = shuffle_channels(x, groups)
    assert torch.equal(shuffled, F.channel_shuffle(x, groups))
    assert shuffled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shuffle_channels(x.contiguous(), groups), shuffled)
