"""Networks of other packages: which modules' outputs are their maps, the embedding, and what makes one unusable."""

import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from kdbench.catalogue.plugins import locating_modules
from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint
from kdbench.models.build import measured
from kdbench.models.external import ExternalNetwork, build_external
from kdbench.models.outputs import Outputs, count_parameters
from kdbench.models.tracing import as_map
from kdbench.suite.networks import info, network_named, network_spec, short_names


SOURCE = """
import numpy as np
import torch
from torch import nn
from kdbench import Outputs, build_model


class Net(nn.Module):
    def __init__(self, classes, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = self.block(width, width, 1)
        self.layer2 = self.block(width, 2 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)

    def block(self, inputs, outputs, stride):
        norm = nn.BatchNorm2d(outputs)
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), norm, nn.ReLU(inplace=True))

    def forward(self, images):
        return self.head(self.pool(self.layer2(self.layer1(self.stem(images)))).flatten(1))


class Digits(nn.Sequential):  # ten classes, images of 28 pixels
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(144, 10))


class Own(nn.Module):  # gives kdbench's outputs itself
    def __init__(self, num_classes):
        super().__init__()
        self.net = build_model("resnet8", num_classes)

    def forward(self, images):
        return self.net(images)


class Pair(Net):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Lost(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.head.weight.data.fill_(float("nan"))


class Drawn(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.head.weight.data += float(np.random.default_rng().normal())


class Wrapped(nn.Module):  # one module that holds all blocks
    def __init__(self, classes):
        super().__init__()
        self.body = Net(classes)

    def forward(self, images):
        return self.body(images)


class Blocks(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.inner = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(count)))

    def forward(self, maps):
        return self.inner(maps)


class Trunk(nn.Module):  # one module that gives a map, with the blocks within
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.trunk = Blocks(3)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.trunk(self.stem(images)).mean((2, 3)))


def number(classes):
    return classes


def broken(classes):
    raise RuntimeError("no such option")


backbone = build_model
"""


@pytest.fixture
def spec(tmp_path):
    """spec(name, **fields): a network of the module above, or one of a library."""
    (tmp_path / "someones_nets.py").write_text(SOURCE)
    with locating_modules({"someones_nets": tmp_path}.get):
        yield lambda name, **fields: network_spec("", name if ":" in name else f"someones_nets:{name}", **fields)
    for module in [name for name in sys.modules if name.startswith("someones_nets")]:
        del sys.modules[module]
    sys.meta_path[:] = [each for each in sys.meta_path if not getattr(each, "of_plugins", False)]


def test_outputs_are_those_of_its_modules(spec):
    network = build(spec("Net"), 10).eval()
    images = torch.rand(2, 3, 32, 32)
    outputs = network(images)
    net = network.net
    stem = net.stem(images)
    first = net.layer1(stem)
    second = net.layer2(first)
    assert network.maps == ("stem", "layer1", "layer2")
    for ours, theirs in zip(outputs.features, (stem, first, second), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(outputs.embedding, second.mean((2, 3)))
    assert network.width == 16
    assert torch.equal(outputs.logits, net(images))
    assert outputs.logits.shape == (2, 10)
    assert torch.equal(deepcopy(network)(images).embedding, outputs.embedding)
    outputs.features[1].sum().backward()
    assert net.stem.weight.grad is not None
    assert net.head.weight.grad is None


def test_maps_and_embedding_by_name(spec):
    network = build(spec("Net", maps=("layer1.2", "layer2"), embedding="pool"), 10).eval()
    outputs = network(torch.rand(2, 3, 32, 32))
    assert [f.shape[1] for f in outputs.features] == [8, 16]
    assert outputs.embedding.shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("torchvision:resnet18", ("maxpool", "layer1", "layer2", "layer3", "layer4")),
        (
            "torchvision:mobilenet_v2",
            ("features.0", "features.1", "features.3", "features.6", "features.13", "features"),
        ),
        ("torchvision:swin_t", ("features.0", "features.1", "features.3", "features.5", "features")),
        ("timm:convnext_femto", ("stem", "stages.0", "stages.1", "stages.2", "stages")),
        ("Wrapped", ("body.stem", "body.layer1", "body.layer2")),
        ("Trunk", ("stem", "trunk.inner.0", "trunk.inner.1", "trunk.inner.2")),
        ("timm:test_vit", ("norm_pre", "blocks.0", "blocks.2", "blocks.3", "blocks.5")),
    ],
)
def test_maps_that_are_found(spec, name, maps):
    network = build_external(spec(name), 7).eval()
    side = network.size or 64
    with torch.no_grad():
        outputs = network(torch.rand(2, 3, side, side))
    assert network.maps == maps
    assert outputs.logits.shape == (2, 7)
    assert outputs.embedding.shape == (2, network.width)
    sides = [f.shape[2] for f in outputs.features]
    assert sides == sorted(sides, reverse=True)
    assert all(f.shape[2] == f.shape[3] for f in outputs.features)


def test_tokens_and_maps_with_channels_last():
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)  # a class token before 2 × 2
    assert torch.equal(as_map(tokens)[1, :, 1, 0], tokens[1, 3])
    assert as_map(torch.zeros(2, 4, 4, 7)).shape == (2, 7, 4, 4)
    assert as_map(torch.zeros(2, 7, 4, 4)).shape == (2, 7, 4, 4)
    with pytest.raises(BadInput, match=r"gives \[2, 7\], which is no map"):
        as_map(torch.zeros(2, 7))


def test_what_is_measured(spec):
    facts = measured(spec("Net"))
    assert facts["features"] == [[8, 1], [8, 1], [16, 2]]
    assert facts["embedding"] == 16
    assert facts["parameters"] == count_parameters(build(spec("Net"), 100))
    positions = 32 * 32  # of the stem and of layer1; a quarter of them in layer2
    assert facts["macs"] == positions * 9 * (3 * 8 + 8 * 8 + 8 * 16 / 4) + 16 * 100 / 4  # measured at twice the side
    assert (facts["size"], facts["classes"], facts["preactivations"]) == (None, None, False)
    facts = measured(spec("Digits"))
    assert (facts["size"], facts["classes"], facts["features"]) == (28, 10, [[4, 1], [4, 1], [4, 5]])
    facts = measured(spec("Own"))
    assert facts["preactivations"]
    assert facts["features"] == [[16, 1], [16, 1], [32, 2], [64, 4]]


def test_one_that_gives_outputs_itself(spec):
    network = build(spec("Own"), 10).eval()
    outputs = network(torch.rand(2, 3, 32, 32))
    assert isinstance(outputs, Outputs)
    assert len(outputs.preactivations) == 3
    assert network.width == 64


@pytest.mark.parametrize("name", ["Net", "timm:test_resnet"])
def test_weights_of_its_own_package(spec, name, tmp_path):
    """A file has the names that the package gives to tensors; the classifier may be of other classes."""
    network, other = build(spec(name), 10), build(spec(name), 5)
    torch.save({"model": network.net.state_dict()}, tmp_path / "weights.pth")
    again = build(spec(name), 10)
    load_checkpoint(again, tmp_path / "weights.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    load_checkpoint(other, tmp_path / "weights.pth", classifier=False)
    first = next(iter(network.state_dict()))
    assert torch.equal(other.state_dict()[first], network.state_dict()[first])


def test_without_its_classifier(spec):
    network = build(spec("Net"), 10).eval()
    network.remove_classifier()
    outputs = network(torch.rand(2, 3, 32, 32))
    assert torch.equal(outputs.logits, outputs.embedding)
    assert not any("head" in name for name in network.state_dict())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("Nett", {}, "there is no function or class 'Nett' in .*Did you mean 'Net'"),
        ("broken", {}, "someones_nets:broken cannot be built: RuntimeError: no such option"),
        ("number", {}, "gives an int, not a torch.nn.Module"),
        ("Net", {"arguments": {"widht": 3}}, "cannot be built: TypeError: .*widht"),
        ("Net", {"maps": ("layer3",)}, "maps: the module 'layer3' of .* is not there. Did you mean 'layer"),
        ("Net", {"maps": ("layer1", "head")}, r"maps: the module 'head' of .* gives \[1, 100\], which is no map"),
        ("Net", {"maps": ("stem",), "embedding": "pol"}, "embedding: the module 'pol' of .* Did you mean 'pool'"),
        ("Digits", {"size": 64}, "does not take images of 64 × 64 pixels"),
        ("Pair", {}, "gives a tuple in training where it gives logits in a test"),
        ("Lost", {}, "gives values that are no numbers with its first weights"),
        ("Drawn", {}, "has other weights after each build"),
        ("torchvision:resnet19", {}, "torchvision has no network 'resnet19'. Did you mean 'torchvision:resnet18'"),
        ("timm:no_such", {}, "timm has no network 'no_such'"),
        ("torchvision:squeezenet1_1", {}, "no linear layer makes its logits: name the module that gives its 'embedding'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(spec, name, fields, message):
    with pytest.raises(BadInput, match=message):
        measured(spec(name, **fields))


def test_a_map_that_is_written_over(spec):
    norm_before_relu = {"maps": ("stem", "layer1.1")}
    with pytest.raises(
        BadInput, match=r"maps: the output of 'layer1.1' of .* is changed in place by the module after it"
    ):
        measured(spec("Net", **norm_before_relu))


def test_one_of_ours_in_other_hands(spec):
    assert isinstance(build(spec("backbone", arguments={"network": "resnet8"}), 10), nn.Module)
    assert not isinstance(build(spec("backbone", arguments={"network": "resnet8"}), 10), ExternalNetwork)


SHIPPED = [name for name, entry in short_names().items() if "macs" in entry]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("convnext-femto", "vit-tiny-32") else pytest.mark.slow)
        for name in SHIPPED
    ],
)
def test_short_names_state_what_is_measured(name):
    spec = network_named(name)
    known, facts = info(spec), measured(spec)
    features = tuple((channels, stride) for channels, stride in facts["features"])
    assert (known.features, known.maps) == (features, tuple(facts["maps"]))
    for key in ("embedding", "parameters", "macs", "activations", "layers", "size", "smallest", "preactivations"):
        assert getattr(known, key) == facts[key], key


@pytest.mark.parametrize(("name", "parameters"), [("18", 11_173_962), ("34", 21_282_122), ("50", 23_520_842)])
def test_resnets_in_their_form_for_cifar(name, parameters, tmp_path):
    """Parameters with ten classes, as the usual implementation has them; its files have names of their own."""
    network = build(f"resnet{name}-cifar", 10)
    assert count_parameters(network) == parameters
    theirs = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for key, value in network.state_dict().items()
    }
    torch.save({"net": theirs, "acc": 95.0}, tmp_path / "ckpt.pth")
    again = build(f"resnet{name}-cifar", 10)
    load_checkpoint(again, tmp_path / "ckpt.pth")
    assert torch.equal(again.layer2[0].downsample[0].weight, network.layer2[0].downsample[0].weight)
    assert torch.equal(again.fc.weight, network.fc.weight)
