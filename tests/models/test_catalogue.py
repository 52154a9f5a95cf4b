"""The catalogue says what the networks measure, and finds them by any of their names."""

import csv
import subprocess
import sys
from importlib.resources import files

import pytest
import torch

from kdbench.catalogue import networks as catalogue
from kdbench.catalogue.networks import network, networks
from kdbench.catalogue.text import nearest, normalise, unknown
from kdbench.errors import BadInput
from kdbench.models import build
from kdbench.models.checkpoints import _meta_network
from kdbench.models.outputs import count_macs, count_operations, count_parameters, measure_shapes


@pytest.mark.parametrize("name", networks())
def test_every_entry_is_what_its_network_measures(name):
    entry = network(name)
    net = _meta_network(name)
    size = entry.size or 32
    shapes = measure_shapes(net, size)
    counted = count_operations(net, size)
    measured = {
        "embedding": shapes.embedding,
        "features": [[channels, size // height] for channels, height, _ in shapes.features],
        "parameters": count_parameters(net),
        "macs": counted.macs + attention_macs(net),
        "activations": counted.activations,
        "layers": counted.layers,
        "classifier": net.classifier_name is not None,
    }
    stated = {key: getattr(entry, key) for key in measured}
    assert stated | {"features": [list(pair) for pair in entry.features]} == measured
    assert (net.width, shapes.logits) == (entry.embedding, 100 if entry.classifier else entry.embedding)


def attention_macs(net):
    """What CLIP's towers compute outside of layers.

    A transformer: queries, keys, values and output of every token, QKᵀ and AV in each block, and the class token's
    projection. A ResNet's attention pool: its four linear layers for every token.
    """
    tower = getattr(net, "visual", None)
    if tower is None:
        return 0
    if hasattr(tower, "attnpool"):
        pool = tower.attnpool
        layers = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
        return len(pool.positional_embedding) * sum(layer.weight.numel() for layer in layers)
    tokens, width = tower.positional_embedding.shape
    block = tokens * 4 * width**2 + 2 * tokens**2 * width
    return len(tower.transformer.resblocks) * block + tower.proj.numel()


def test_published_weights_are_named_after_their_contents():
    published = {name: entry.public for name, entry in networks().items() if entry.public}
    assert len({weights.file for weights in published.values()}) == len(published)
    for name, weights in published.items():
        assert weights.url.endswith(f"/{weights.file}")
        assert weights.sha256 in weights.url
        assert len(weights.sha256) == 64 or f"-{weights.sha256}.pth" in weights.file
        assert bool(weights.classes) == network(name).classifier
        assert weights.size == 224


def test_measuring_leaves_a_network_as_it_was():
    net = build("wrn-16-1")
    net.block1.eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    count_macs(net, 32)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_stages_are_all_maps_but_the_stems():
    shapes = measure_shapes(build("resnet8", 10), 32)
    assert shapes.stages == ((16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert len(shapes.features) == 4


def test_cudnn_tries_no_algorithms_for_a_batch_of_one(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    net, seen = build("resnet8", 10), []
    net.conv1.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    measure_shapes(net, 32)
    assert seen == [False]
    assert torch.backends.cudnn.benchmark


def test_macs_grow_with_the_image():
    assert count_macs(build("vgg8"), size=64) == 271_370_240
    assert count_macs(build("resnet8x4"), size=96) == 1_593_435_136


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("wrn_40_2", "wrn-40-2"),
        ("WRN-40-2", "wrn-40-2"),
        ("wrn16-2", "wrn-16-2"),
        ("ResNet-32x4", "resnet32x4"),
        ("resnet8×4", "resnet8x4"),
        ("VGG-13", "vgg13"),
        ("MobileNetV2", "mobilenetv2"),
        ("ShuffleV1", "shufflenetv1"),
        ("ShuffleNetV2", "shufflenetv2"),
        ("ShuffleV2", "shufflenetv2"),
        ("ResNet50", "resnet50"),
        ("ResNet18", "resnet18"),
        ("ResNet-34", "resnet34"),
        ("ShuffleNetV2x0.5", "shufflenetv2x0.5"),
        ("shufflenet_v2_x0_5", "shufflenetv2x0.5"),
        ("resnet8x4_double", "resnet8x4-double"),
        ("wrn_16_4", "wrn-16-4"),
        ("ViT-B/32", "clip-vit-b32"),
        ("clip-vit-b/16", "clip-vit-b16"),
        ("vit_b_32", "clip-vit-b32"),
        ("CLIP-RN101", "clip-rn101"),
        ("RN50", "rn50"),
        ("ResNet101", "rn101"),
    ],
)
def test_aliases(alias, name):
    assert network(alias).name == name


def test_every_published_student_can_be_built():
    with files("kdbench.catalogue").joinpath("reference.csv").open(encoding="utf-8") as file:
        published = {row["student"] for row in csv.DictReader(file)} - {""}
    assert published <= set(networks())


def test_no_two_networks_share_a_spelling():
    spellings = [{normalise(spelling) for spelling in (entry.name, *entry.aliases)} for entry in networks().values()]
    assert len(set().union(*spellings)) == sum(map(len, spellings))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(BadInput) as error:
        build("resnet8x5")
    assert str(error.value) == "unknown model 'resnet8x5'. Did you mean 'resnet8x4'?  (kdbench list models)"
    with pytest.raises(BadInput) as error:
        build("perceiver")
    assert str(error.value) == "unknown model 'perceiver'.  (kdbench list models)"


def test_nearest_sees_through_case_and_separators():
    assert nearest("WRN_40_3", networks()) == "wrn-40-2"
    assert nearest("semkcd", ["crd", "semckd"]) == "semckd"
    assert nearest("zzz", ["crd", "semckd"]) is None
    assert unknown("method", "zzz", ["crd"], "methods") == "unknown method 'zzz'.  (kdbench list methods)"


def test_the_catalogue_does_not_import_torch():
    code = "import kdbench.catalogue.networks as n, sys; n.networks(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("builder", "depth", "rule"), [("resnet", 9, "6n \\+ 2"), ("wrn", 4, "6n \\+ 4")])
def test_a_depth_that_does_not_exist_is_refused(builder, depth, rule):
    module = pytest.importorskip(f"kdbench.models.{builder}")
    with pytest.raises(ValueError, match=rule):
        module.build(classes=10, depth=depth, **({"factor": 1} if builder == "wrn" else {"widths": (16, 16, 32, 64)}))


def test_a_network_needs_no_other_names():
    entry = {
        "summary": "",
        "builder": "resnet",
        "arguments": {},
        "embedding": 1,
        "features": [],
        "parameters": 1,
        "macs": 1,
    }
    assert catalogue.network_info("mine", **entry).aliases == ()
