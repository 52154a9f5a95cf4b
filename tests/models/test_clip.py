"""CLIP's encoders give open_clip's embedding, from whichever layout of weights."""

import logging
import socket
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdbench.catalogue.networks import network
from kdbench.data.preprocess import import_torchvision
from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint
from kdbench.models.heads import NodeEmbedding
from kdbench.models.outputs import measure_shapes


MODELS = {"clip-vit-b32": "ViT-B-32", "clip-vit-b16": "ViT-B-16", "clip-rn101": "RN101", "clip-rn50": "RN50"}
TEXT = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight")


@dataclass
class Theirs:
    """One of open_clip's models with random weights that half precision holds exactly, and what it gives for an image.

    ours: our network, to be filled with them
    """

    name: str
    ours: Any
    tower: Any
    tensors: dict[str, torch.Tensor]
    image: torch.Tensor
    embedding: torch.Tensor


QUICK = ("clip-vit-b32", "clip-rn50")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def theirs(request):
    import_torchvision()
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config(f"{MODELS[request.param]}-quickgelu")
    text_config = config.pop("text_cfg") | {
        "layers": 1,
        "vocab_size": 8,
    }  # its size is of no account, and takes seconds
    model = open_clip.CLIP(**config, text_cfg=text_config).eval()
    for module in model.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.uniform_(values, -0.2, 0.2)
    tower = {key: value.half() for key, value in model.visual.state_dict().items()}
    model.visual.load_state_dict(tower)
    text = {key: torch.ones(1) for key in TEXT}
    assert text.keys() <= model.state_dict().keys()
    tensors = text | {f"visual.{key}": value for key, value in tower.items()}
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        embedding = model.encode_image(image)
    return Theirs(request.param, build(request.param).eval(), model.visual, tensors, image, embedding)


def assert_loads(theirs, path):
    for values in (*theirs.ours.parameters(), *theirs.ours.buffers()):
        values.detach().zero_()
    load_checkpoint(theirs.ours, path)
    for key, value in theirs.ours.state_dict().items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        assert key.endswith("num_batches_tracked") or torch.equal(value, theirs.tensors[key].float()), key


def assert_gives_their_embedding(theirs, path):
    assert_loads(theirs, path)
    with torch.no_grad():
        outputs = theirs.ours(theirs.image)
    assert outputs.embedding.dtype == torch.float32
    torch.testing.assert_close(outputs.embedding, theirs.embedding, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs.logits, outputs.embedding)
    return outputs


def test_open_clips_layout(theirs, tmp_path):
    path = tmp_path / "epoch_32.pt"
    torch.save({"epoch": 32, "state_dict": {f"module.{key}": value for key, value in theirs.tensors.items()}}, path)
    outputs = assert_gives_their_embedding(theirs, path)
    assert len(outputs.preactivations) == len(outputs.stages)
    assert [list(f.shape[1:]) for f in outputs.features] == [
        [channels, 224 // stride, 224 // stride] for channels, stride in network(theirs.name).features
    ]


@pytest.mark.parametrize("theirs", ["clip-rn50"], indirect=True)
def test_a_resnets_maps(theirs):
    theirs.ours.load_state_dict({f"visual.{key}": value for key, value in theirs.tower.state_dict().items()})
    with torch.no_grad():
        outputs = theirs.ours(theirs.image)
        expected = theirs.tower.forward_intermediates(theirs.image)["image_intermediates"]
    for mine, reference in zip(outputs.features, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
    for before, after in zip(outputs.preactivations, outputs.stages, strict=True):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)


@pytest.mark.parametrize("theirs", ["clip-rn50", pytest.param("clip-vit-b32", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("layout", ["bare.safetensors", "bare.bin", "tower.pt"])
def test_other_layouts(theirs, tmp_path, layout):
    path = tmp_path / layout
    content = dict(theirs.tensors)
    if layout == "tower.pt":
        content = {key.removeprefix("visual."): content[key] for key in content if key.startswith("visual.")}
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    assert_loads(theirs, path)


class Node(nn.Module):
    """A module of a tree that is made of names alone."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def save_as_openai_does(tensors, path):
    """A TorchScript archive whose modules hold the tensors under their names, and the three numbers of OpenAI's files."""
    root = Node()
    extras = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    for key, value in {**tensors, **{key: torch.tensor(number) for key, number in extras.items()}}.items():
        *names, last = key.split(".")
        node: nn.Module = root
        for name in names:
            if name not in node._modules:
                node.add_module(name, Node())
            node = node._modules[name]
        if value.is_floating_point():
            node.register_parameter(last, nn.Parameter(value.clone(), requires_grad=False))
        else:
            node.register_buffer(last, value)
    torch.jit.script(root).save(str(path))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_openais_layout(theirs, tmp_path, monkeypatch):
    path = tmp_path / "openai.pt"
    save_as_openai_does(theirs.tensors, path)
    monkeypatch.setattr(torch.jit, "load", None)
    check = assert_gives_their_embedding if theirs.name in QUICK else assert_loads
    check(theirs, path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("theirs", ["clip-rn50"], indirect=True)
def test_a_traced_model(theirs, tmp_path):
    path = tmp_path / "traced.pt"
    whole = nn.Sequential()
    whole.add_module("visual", theirs.tower)
    torch.jit.trace(whole, theirs.image, check_trace=False).half().save(str(path))
    theirs.tower.float()
    assert_loads(theirs, path)


def refusal(name, path):
    with torch.device("meta"):
        net = build(name)
    with pytest.raises(BadInput) as error:
        load_checkpoint(net, path)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("theirs", ["clip-rn50"], indirect=True)
def test_what_is_refused(theirs, tmp_path):
    path = tmp_path / "openai.pt"
    save_as_openai_does(theirs.tensors, path)
    for other in ("clip-rn101", "clip-vit-b32", "resnet8"):
        message = refusal(other, path)
        assert message.startswith("weights of another architecture (missing: ")
        assert message.endswith("These are the weights of clip-rn50: name that network, or give another file.")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refusal("clip-rn50", path).startswith("truncated, damaged or not a checkpoint (")
    narrow = {**theirs.tensors, "visual.attnpool.c_proj.weight": torch.zeros(512, 2048)}
    torch.save(narrow, path)
    message = refusal("clip-rn50", path)
    assert "other shapes: visual.attnpool.c_proj.weight is [512, 2048] instead of [1024, 2048]" in message
    assert message.endswith("Name the network that they belong to.")


def test_patches_of_another_size(tmp_path):
    with torch.device("meta"):
        net = build("clip-vit-b16")
    path = tmp_path / "weights.pt"
    torch.save({key: torch.zeros(value.shape, dtype=torch.half) for key, value in net.state_dict().items()}, path)
    message = refusal("clip-vit-b32", path)
    assert "visual.conv1.weight is [768, 3, 16, 16] instead of [768, 3, 32, 32]" in message
    assert "These are the weights of clip-vit-b16" in message


def test_building_needs_no_network_and_is_quiet(monkeypatch, caplog):
    monkeypatch.setattr(socket.socket, "connect", None)
    before = (list(logging.root.handlers), logging.root.level)
    net = build("clip-rn50", classes=7)
    assert (list(logging.root.handlers), logging.root.level) == before
    assert not caplog.records
    assert {key.partition(".")[0] for key in net.state_dict()} == {"visual"}


def test_images_of_another_size_are_refused():
    with torch.device("meta"):
        net = build("clip-vit-b32")
    with pytest.raises(BadInput, match="takes images of 224 × 224 pixels, not 32 × 48"):
        net(torch.zeros(1, 3, 32, 48, device="meta"))


@pytest.mark.parametrize(("name", "maps"), [("clip-vit-b32", 0), ("clip-rn101", 5)])
def test_an_encoder_carries_a_head(name, maps):
    with torch.device("meta"):
        net = NodeEmbedding(build(name), classes=10)
    shapes = measure_shapes(net, 224)
    assert (shapes.logits, shapes.embedding, len(shapes.features)) == (10, 256, maps)
