"""What load_checkpoint takes, and with which words it refuses the rest."""

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdbench.catalogue.networks import networks
from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint
from kdbench.models.checkpoints import _meta_network, published_accuracy, report_misfits
from kdbench.models.heads import NodeEmbedding


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    net = build("resnet8", 10)
    net(torch.randn(4, 3, 32, 32))
    return net


def state(net, prefix=""):
    return {prefix + key: value.clone() for key, value in net.state_dict().items()}


def assert_loads(source, path):
    net = build("resnet8", 10)
    load_checkpoint(net, path)
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(net.state_dict()[key], value), key


def refusal(net, path):
    before = state(net)
    with pytest.raises(BadInput) as error:
        load_checkpoint(net, path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert error.value.__cause__ is None
    return str(error.value).removeprefix(f"{path}: ")


PLAIN = [
    pathlib.PurePosixPath("runs/1"),
    pathlib.Path("runs/1"),
    collections.defaultdict(list, a=[1]),
    collections.Counter("aab"),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    np.float64(70.5),
    np.arange(3.0),
    np.array(["words"]),
    np.random.default_rng(0).integers(3, size=(2, 2)),
    {1, 2},
    complex(1, 2),
    torch.Size([1]),
    torch.float16,
    torch.device("cpu"),
    torch.nn.Parameter(torch.zeros(2)),
    torch.torch_version.TorchVersion("2.1"),
]


def nested(weights):
    """Mappings of modules in modules, as other frameworks write them."""
    tree = {}
    for name, value in weights.items():
        *modules, last = name.split(".")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[last] = value
    return tree


WRAPPINGS = {
    "bare": lambda net: state(net),
    "ordered": lambda net: net.state_dict(),
    "model": lambda net: {"epoch": 240, "model": state(net), "optimizer": {"state": {}}},
    "state_dict": lambda net: {"state_dict": state(net), "accuracy": 0.5},
    "options": lambda net: {"opt": argparse.Namespace(learning_rate=0.05), "model": state(net)},
    "module": lambda net: {"model": state(net, "module.")},
    "backbone": lambda net: {**state(net, "backbone."), "proj_head.0.weight": torch.zeros(64, 64)},
    "both": lambda net: {**state(net, "module.backbone."), "module.proj_head.0.weight": torch.zeros(64, 64)},
    "net": lambda net: {"net": state(net), "acc": 70.5},
    "nested": lambda net: {"state": [{"model": state(net)}]},
    "compiled": lambda net: {"model": state(net, "module._orig_mod.")},
    "wrapped inside": lambda net: {
        key.replace("layer1.", "layer1.module."): value for key, value in state(net).items()
    },
    "student beside another": lambda net: {
        "model": {**state(net, "module.student."), **state(build("resnet14", 10), "module.teacher.")}
    },
    "averaged beside": lambda net: {"state_dict": state(net), "state_dict_ema": state(build("resnet8", 10))},
    "averaged alone": lambda net: {"n_averaged": torch.tensor(7), **state(net, "module.")},
    "ssl": lambda net: {"state_dict": {**state(net, "backbone."), "projector.0.weight": torch.zeros(8, 64)}},
    "arrays": lambda net: {key: value.numpy() for key, value in state(net).items()},
    "columns": lambda net: {**state(net), "fc.weight": net.fc.weight.detach().T.contiguous().T},
    "plain data": lambda net: {"model": state(net), "more": PLAIN},
    "nested by modules": lambda net: {"params": nested(state(net))},
    "sharded": lambda net: {
        key.replace("layer1.", "layer1._fsdp_wrapped_module."): value for key, value in state(net).items()
    },
    "classifier beside": lambda net: {
        "state_dict": {
            ("head." if key.startswith("fc.") else "backbone.") + key: value for key, value in state(net).items()
        }
    },
    "classifier renamed": lambda net: {
        key.replace("fc.", "head.classifier."): value for key, value in state(net).items()
    },
    "classifier beside, and another network's": lambda net: {
        **{("head." if key.startswith("fc.") else "student.") + key: value for key, value in state(net).items()},
        **state(build("resnet14", 10), "teacher."),
    },
    "other modules beside": lambda net: {
        **state(net),
        "criterion.weight": torch.ones(10),
        "mean": torch.zeros(3),
        "conv1.total_ops": torch.zeros(1),
    },
    "averaged inside": lambda net: {**state(net, "module."), **state(build("resnet8", 10), "ema.module.")},
    "optimiser state by name": lambda net: {
        **state(net),
        "optimizer": {"exp_avg": state(build("resnet8", 10)), "step": torch.tensor(3)},
    },
    "no counters": lambda net: {key: value for key, value in state(net).items() if "num_batches" not in key},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(source, tmp_path, wrapping, zipped):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](source), path, _use_new_zipfile_serialization=zipped)
    assert_loads(source, path)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_safetensors(source, tmp_path, prefix):
    path = tmp_path / "weights.safetensors"
    save_file(state(source, prefix), path)
    assert_loads(source, str(path))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_that_were_pickled_without_torch(source, tmp_path, protocol):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"epoch": 240, "model": source.state_dict()}, protocol=protocol))
    assert_loads(source, path)


@pytest.mark.parametrize("wrapped", ["conv1", "layer1", "fc"])
def test_a_network_of_which_a_part_was_run_in_parallel(source, tmp_path, wrapped):
    path = tmp_path / "weights.pth"
    names = {key: ("module." if key.startswith(wrapped) else "") + key for key in source.state_dict()}
    torch.save({names[key]: value for key, value in source.state_dict().items()}, path)
    assert_loads(source, path)


def test_a_network_whose_own_names_begin_with_backbone(tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(1)
    source, net = (NodeEmbedding(build("resnet8", 10), classes=10) for _ in range(2))
    torch.save(state(source, "module."), path)
    load_checkpoint(net, path)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())


class Command:
    """What a hostile file holds: unpickling it runs a command."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_does_not_run(source, tmp_path, zipped):
    path, sentinel = tmp_path / "weights.pth", tmp_path / "sentinel"
    torch.save({"model": state(source), "extra": Command(sentinel)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(build("resnet8", 10), path)
    assert "posix.system" in message
    assert "could run code, so it is refused" in message
    assert "state_dict() as .safetensors" in message
    assert not sentinel.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_does_not_run_either(tmp_path, protocol):
    path, sentinel = tmp_path / "weights.pkl", tmp_path / "sentinel"
    path.write_bytes(pickle.dumps(Command(sentinel), protocol=protocol))
    assert "Traceback" not in refusal(build("resnet8", 10), path)
    assert not sentinel.exists()
    pickle.loads(path.read_bytes())
    assert sentinel.exists(), "the sentinel proves nothing unless the file could run"


def test_a_pickled_network_is_refused(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source, path)
    assert refusal(build("resnet8", 10), path).startswith("holds more than weights (kdbench.models.resnet.ResNet)")


def test_files_that_are_no_checkpoint(tmp_path):
    net, path = build("resnet8", 10), tmp_path / "weights.pth"
    assert refusal(net, path).startswith("no such file.")
    assert refusal(net, tmp_path).startswith("this is a folder.")
    path.write_text("\n<!DOCTYPE html><html><body>Please sign in</body></html>")
    assert refusal(net, path).startswith("a web page, not weights")
    path.write_bytes(b"")
    assert refusal(net, path).startswith("truncated, damaged or not a checkpoint (0 bytes)")
    path.write_text("hello world")
    assert refusal(net, path).startswith("truncated, damaged or not a checkpoint (11 bytes)")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files(source, tmp_path, kind, share):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state(source), path)
    else:
        torch.save(state(source), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(build("resnet8", 10), path).startswith("truncated, damaged or not a checkpoint")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"epoch": 3, "best_acc": 0.7}, "the keys epoch, best_acc"),
        ({"model": {}}, "the keys model"),
        ([1, 2], "a list"),
        (torch.zeros(3), "one tensor"),
    ],
)
def test_files_without_weights(tmp_path, content, held):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    message = refusal(build("resnet8", 10), path)
    assert message.startswith(f"no weights found: it holds {held}.")
    assert "Expected names and their tensors" in message


def test_another_architecture(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state(source), path)
    message = refusal(build("wrn-16-1", 10), path)
    assert message.startswith("weights of another architecture (missing: block1.layer.0.bn1.weight, ")
    assert "unexpected: bn1" not in message
    assert "unexpected: layer1.0.conv1.weight, " in message
    assert "more" in message
    assert message.endswith("These are the weights of resnet8: name that network, or give another file.")


def test_another_width(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state(build("resnet8x4", 10)), path)
    message = refusal(build("resnet8", 10), path)
    assert "other shapes: conv1.weight is [32, 3, 3, 3] instead of [16, 3, 3, 3]" in message
    assert "These are the weights of resnet8x4" in message


@pytest.mark.parametrize("name", ["mobilenetv2", "wrn-40-1", "vgg13-double", "shufflenetv1", "rn50"])
def test_the_network_that_weights_belong_to_is_named(tmp_path, name):
    path = tmp_path / "weights.pth"
    torch.save({"model": state(build(name, 7), "module.")}, path)
    assert f"These are the weights of {name}:" in refusal(build("resnet8", 10), path)


def test_weights_of_no_known_network(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**state(source), "layer9.weight": torch.zeros(3)}, path)
    assert refusal(build("resnet8x4", 10), path).endswith("Name the network that they belong to.")


def test_no_two_networks_have_the_same_tensors():
    states = [_meta_network(name).state_dict() for name in networks()]
    shapes = {frozenset((key, tuple(value.shape)) for key, value in state.items()) for state in states}
    assert len(shapes) == len(states)


def test_no_network_takes_the_weights_of_a_deeper_one(tmp_path):
    path = tmp_path / "weights.pth"

    def refused(path, name):
        for classifier in (True, False):
            with pytest.raises(BadInput, match="weights of another architecture"):
                load_checkpoint(build(name, 10), path, classifier=classifier)

    for shallow, deep in [
        ("resnet8", "resnet14"),
        ("vgg8", "vgg11"),
        ("wrn-16-2", "wrn-40-2"),
        ("resnet18", "resnet34"),
    ]:
        torch.save(state(build(deep, 10)), path)
        refused(path, shallow)
    further_stage = {"layer4.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    torch.save({**state(build("resnet8", 10)), **further_stage}, path)
    refused(path, "resnet8")


@pytest.mark.parametrize(
    "head",
    [
        {"fc.0.weight": (64, 64), "fc.0.bias": (64,), "fc.2.weight": (128, 64), "fc.2.bias": (128,)},
        {"projection_head.0.weight": (4, 64), "prototypes.weight": (30, 4)},
    ],
)  # fmt: skip
def test_a_projection_head_is_no_classifier(source, tmp_path, head):
    path = tmp_path / "weights.pth"
    features = {key: value for key, value in state(source).items() if not key.startswith("fc.")}
    heads = {key: torch.zeros(shape) for key, shape in head.items()}
    encoders = {**features, **heads}, features
    torch.save({f"{name}.{key}": v for name, each in zip("qk", encoders, strict=True) for key, v in each.items()}, path)
    net = build("resnet8", 10)
    load_checkpoint(net, path, classifier=False)
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert refusal(net, path).startswith("holds the network without its classifier.")


@pytest.mark.parametrize("name", ["resnet18", "shufflenetv2x0.5", "mobilenetv2", "vgg8"])
def test_without_the_files_classifier(tmp_path, name):
    path = tmp_path / "weights.pth"
    source, net = build(name, 1000), build(name, 10)
    torch.save(state(source), path)
    before = state(net)
    load_checkpoint(net, path, classifier=False)
    for key, value in net.state_dict().items():
        mine = key.startswith(f"{net.classifier_name}.")
        assert torch.equal(value, before[key] if mine else source.state_dict()[key]), key
    without = {key: value for key, value in state(source).items() if not key.startswith(f"{net.classifier_name}.")}
    torch.save(without, path)
    load_checkpoint(net, path, classifier=False)
    assert refusal(net, path).startswith("holds the network without its classifier.")


def test_half_precision_becomes_the_networks_own(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({key: value.half() for key, value in state(source).items() if value.is_floating_point()}, path)
    net = build("resnet8", 10)
    load_checkpoint(net, path)
    for key, value in source.state_dict().items():
        if value.is_floating_point():
            assert net.state_dict()[key].dtype == torch.float32
            assert torch.equal(net.state_dict()[key], value.half().float())


@pytest.mark.parametrize(
    ("entries", "own", "best"),
    [
        ({"accuracy": torch.tensor(75.61)}, 75.61, None),
        ({"best_acc": torch.tensor([72.5]), "epoch": 240}, None, 72.5),
        ({"acc": 0.7461}, 74.61, None),
        ({"best_acc": np.float64(70.5)}, None, 70.5),
        ({"best_prec1": 70.5}, None, 70.5),
        ({"best_acc1": 99.0, "acc1": 70.5}, 70.5, 99.0),
        ({"accelerator": 3, "top": 4}, None, None),
        ({"acc": 1}, 100.0, None),
        ({"accuracy": "high"}, None, None),
        ({"accuracy": torch.tensor([1.0, 2.0])}, None, None),
        ({"accuracy": float("nan"), "best_acc": True}, None, None),
        ({"accuracy": 240.0}, None, None),
        ({}, None, None),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_checkpoint_says_of_itself(source, tmp_path, entries, own, best, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state(source), **entries}, path, _use_new_zipfile_serialization=zipped)
    assert published_accuracy(path) == tuple(each and pytest.approx(each, abs=1e-4) for each in (own, best))


def test_bare_weights_say_nothing_of_themselves(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(state(source), path)
    assert published_accuracy(path) == (None, None)


@pytest.mark.parametrize("name", ["resnet8", "vgg8"])
def test_another_class_count(tmp_path, name):
    path = tmp_path / "weights.pth"
    torch.save(state(build(name, 10)), path)
    message = refusal(build(name, 100), path)
    assert message == "trained for 10 classes, but 100 are expected. Give a checkpoint of 100 classes."


SSKD = {
    "bare": {"classifier.weight": "classifier.0.weight", "classifier.bias": "classifier.0.bias"},
    "wrapped": {"backbone.classifier.weight": "classifier.0.weight", "backbone.classifier.bias": "classifier.0.bias"},
}


@pytest.mark.parametrize("layout", [*SSKD, "own"])
def test_mobilenetv2_under_either_authors_names(tmp_path, layout):
    path = tmp_path / "weights.pth"
    source, net = build("mobilenetv2", 10), build("mobilenetv2", 10)
    content = state(source)
    for theirs, ours in SSKD.get(layout, {}).items():
        content[theirs] = content.pop(ours)
    if layout == "wrapped":
        content = {f"backbone.{key.removeprefix('backbone.')}": value for key, value in content.items()}
    torch.save({"state_dict": content}, path)
    load_checkpoint(net, path)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())
    assert refusal(build("mobilenetv2", 100), path).startswith("trained for 10 classes, but 100 are expected.")


def test_a_classifier_is_not_put_together_from_two_layers(tmp_path):
    path = tmp_path / "weights.pth"
    content = state(build("shufflenetv2", 10))
    content["classifier.weight"] = content.pop("linear.weight")
    torch.save(content, path)
    assert refusal(build("shufflenetv2", 10), path).startswith("holds the network without its classifier.")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weight: weight * float("nan"), "values that are no numbers"),
        (lambda weight: weight.to(torch.uint8), "holds uint8 instead of float32"),
        (lambda weight: weight.to(torch.complex64), "holds complex64 instead of float32"),
        (lambda weight: weight.to_sparse(), "quantised or sparse"),
    ],
    ids=["nan", "uint8", "complex", "sparse"],
)
def test_values_that_are_no_weights(source, tmp_path, spoil, words):
    content = state(source)
    content["fc.weight"] = spoil(content["fc.weight"])
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert words in refusal(build("resnet8", 10), path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {}, "x": evil}], ids=["bare", "dict"])
def test_a_plain_pickle_with_code_is_called_what_it_is(tmp_path, protocol, wrap):
    path, sentinel = tmp_path / "weights.pth", tmp_path / "sentinel"
    path.write_bytes(pickle.dumps(wrap(Command(sentinel)), protocol=protocol))
    message = refusal(build("resnet8", 10), path)
    assert "posix.system" in message
    assert "could run code" in message
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights"])
def test_a_files_kind_is_told_by_its_content(source, tmp_path, name):
    save_file(state(source), tmp_path / name)
    assert_loads(source, tmp_path / name)
    torch.save(state(source), tmp_path / "weights.safetensors")
    assert_loads(source, tmp_path / "weights.safetensors")


def test_one_of_several_networks_is_chosen_by_its_place(source, tmp_path):
    path, other = tmp_path / "weights.pth", build("resnet8", 10)
    torch.save({"model": {**state(source, "module.student."), **state(other, "module.teacher.")}}, path)
    message = refusal(build("resnet8", 10), path)
    assert message.startswith("holds 2 networks of this kind: model.module.student, model.module.teacher. Name one")
    for key, chosen in {"student": source, "model.module.teacher": other}.items():
        net = build("resnet8", 10)
        load_checkpoint(net, path, key=key)
        assert torch.equal(net.conv1.weight, chosen.conv1.weight)
    with pytest.raises(BadInput, match=r"the key 'pupil' names none of its networks"):
        load_checkpoint(build("resnet8", 10), path, key="pupil")
    torch.save({"state_dict": state(source), "state_dict_ema": state(other)}, path)
    net = build("resnet8", 10)
    load_checkpoint(net, path, key="state_dict_ema")
    assert torch.equal(net.conv1.weight, other.conv1.weight)


def test_archives_of_checkpoints_are_called_what_they_are(source, tmp_path):
    inner, path, net = tmp_path / "ckpt_240.pth", tmp_path / "weights.pth", build("resnet8", 10)
    torch.save(state(source), inner)
    for mode in ("w", "w:gz", "w:bz2"):
        with tarfile.open(path, mode) as archive:
            archive.add(inner, "teachers/resnet8/ckpt_240.pth")
        expected = "an archive of 1 file (teachers/resnet8/ckpt_240.pth): unpack it and name that one."
        assert refusal(net, path) == expected
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(7):
            archive.write(inner, f"{number}.pth")
    assert refusal(net, path).startswith("an archive of 7 files (0.pth, 1.pth, 2.pth, 3.pth, 4.pth …): unpack it")
    path.write_bytes(b"\xfd7zXZ\0 and more")
    assert refusal(net, path).startswith("a compressed file. Unpack it")


def test_what_does_not_fit_is_reported_before_anything_runs(source, tmp_path, monkeypatch, capsys):
    torch.save(state(source), tmp_path / "net.pth")
    asked = {"file": str(tmp_path / "net.pth"), "network": "resnet8", "classes": 10, "classifier": True, "key": None}
    changes = [{}, {"classes": 7}, {"classes": 7, "classifier": False}, {"network": "resnet14"}]
    request = {"files": [asked | each for each in changes], "beside": {}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    report_misfits()
    right, classes, encoder, network = json.loads(capsys.readouterr().out)
    assert right == encoder == ""
    assert "10 classes" in classes
    assert "resnet8" in network
