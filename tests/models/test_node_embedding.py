import pytest
import torch

from kdbench.models import build
from kdbench.models.heads import LinearProbe, NodeEmbedding
from kdbench.models.outputs import count_parameters, measure_shapes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet8x4", 1_299_332),
        ("vgg13", 9_567_908),
        ("rn50", 23_508_032 + 550_244),
        ("clip-rn50", 38_316_896 + 288_100),
    ],
)
def test_replaces_the_classifier(name, parameters):
    net = NodeEmbedding(build(name), classes=100)
    assert count_parameters(net) == parameters
    assert not any(".fc." in key or "classifier" in key for key in net.state_dict())


def test_gives_the_node_embedding_and_the_backbones_maps():
    backbone = build("wrn-16-2").eval()
    images = torch.randn(2, 3, 32, 32)
    below = backbone(images)
    net = NodeEmbedding(backbone, classes=10, width=32).eval()
    outputs = net(images)

    torch.testing.assert_close(outputs.embedding, net.node(below.embedding))
    torch.testing.assert_close(outputs.logits, net.fc(net.node(below.embedding)))
    for mine, theirs in zip(
        outputs.features + outputs.preactivations, below.features + below.preactivations, strict=True
    ):
        assert torch.equal(mine, theirs)
    shapes = measure_shapes(net, 32)
    assert (shapes.logits, shapes.embedding, len(shapes.features)) == (10, 32, 4)


def test_a_step_reaches_every_parameter():
    net = NodeEmbedding(build("resnet8"), classes=10)
    net(torch.randn(2, 3, 32, 32)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_linear_probe_reads_the_embedding_of_a_frozen_backbone():
    backbone = build("resnet8", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    probe = LinearProbe(64, 5, backbone)
    found = probe(images)
    assert torch.equal(found.embedding, backbone(images).embedding)
    assert torch.equal(found.logits, probe.fc(found.embedding))
    assert (found.logits.shape, found.features) == ((2, 5), [])
    assert [name for name, each in probe.named_parameters() if each.requires_grad] == ["fc.weight", "fc.bias"]
    alone = LinearProbe(64, 5)
    assert alone(found.embedding).embedding is found.embedding
