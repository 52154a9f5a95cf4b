"""The networks for ImageNet are torchvision's: the same weights under the same names give the same values."""

import pytest
import torch
from torch import nn

from kdbench.data.preprocess import import_torchvision
from kdbench.models import build, load_checkpoint


THEIRS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "rn50": "resnet50",
    "rn101": "resnet101",
    "shufflenetv2x0.5": "shufflenet_v2_x0_5",
}
STAGES = {"resnet": "layer1 layer2 layer3 layer4", "shufflenet": "stage2 stage3 stage4"}


DEEPER = ("resnet34", "rn101")
"""Networks whose blocks a shallower one has too."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ()) for name in THEIRS], scope="module"
)
def pair(request, tmp_path_factory):
    """One of our networks and torchvision's with the same weights and statistics, brought over as a file."""
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    theirs = getattr(models, THEIRS[request.param])(weights=None, num_classes=10)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(theirs.state_dict(), path)
    ours = build(request.param, 10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    load_checkpoint(ours, path)
    return ours, theirs


@pytest.mark.parametrize(("size", "training"), [(32, False), (96, True), (129, False), (33, True)])
def test_gives_torchvisions_logits(pair, size, training):
    images = torch.randn(2, 3, size, size)
    ours, theirs = (net.train(training) for net in pair)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=1e-4, atol=1e-4)
    for mine, reference in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_exposes_the_pooled_stem_and_every_stage(pair):
    ours, theirs = (net.eval() for net in pair)
    kind = next(kind for kind in STAGES if type(theirs).__name__.lower().startswith(kind))
    expected = []
    hooks = [
        theirs.get_submodule(name).register_forward_hook(lambda _, __, output: expected.append(output))
        for name in ("maxpool", *STAGES[kind].split())
    ]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs(images)
        outputs = ours(images)
    assert len(hooks) == len(outputs.features)
    for mine, reference in zip(outputs.features, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.fc(outputs.embedding), outputs.logits)
