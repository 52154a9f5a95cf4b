"""kdbench export: every file gives the network's logits, the folder needs no kdbench, a failure leaves nothing."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import kdbench
from kdbench.catalogue.networks import networks
from kdbench.catalogue.plugins import locating_modules
from kdbench.cli.app import app
from kdbench.deployment import export as exporting
from kdbench.deployment.card import _origin, model_card
from kdbench.deployment.classifier import Classifier
from kdbench.deployment.finished import find_network
from kdbench.deployment.source import standalone
from kdbench.errors import BadInput, KdbenchError
from kdbench.models import build
from kdbench.store.result import Result
from kdbench.suite.networks import network_spec
from kdbench.suite.specs import DatasetSpec, HeadSpec, Imported, NewLayers, Recipe, Supervised, Weights
from kdbench.training.build import keep_code, new_network
from kdbench.training.checkpoint import write_tensors


IMAGENET = DatasetSpec(name="imagenet")
OWN = {known.builder: name for name, known in networks().items() if known.builder != "clip"} | {
    "imagenet_resnet": "rn50"
}


LOGITS_OF_FOLDERS = """
import importlib, sys, torch
images = torch.load("images.pt")
for name in sys.argv[1:]:
    sys.path.insert(0, name)
    model = importlib.import_module("model")
    with torch.no_grad():
        torch.save([model.load()(images), model.load()(images / 255)], f"{name}.pt")
    del sys.modules["model"]
    sys.modules.pop("exported_nets", None)
assert not any(name.partition(".")[0] == "kdbench" for name in sys.modules)
"""


def assert_folders_give_logits_of(networks, folder):
    """Each subfolder that is named so, of pixels and of their shares of 255, in a process without kdbench."""
    raw = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.save(raw, folder / "images.pt")
    subprocess.run([sys.executable, "-c", LOGITS_OF_FOLDERS, *networks], cwd=folder, check=True)
    facts = DatasetSpec(name="digits").facts
    for name, network in networks.items():
        with torch.no_grad():
            expected = Classifier(network, (), facts.mean, facts.std).eval()(raw)
        for logits in torch.load(folder / f"{name}.pt"):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_folder_gives_the_logits_without_kdbench(shelf, tmp_path):
    names = ("run", "layers")
    for name in names:
        files = kdbench.export(shelf.specs[name].id[:8], tmp_path / name, results=shelf.root)
        assert files == ["README.md", "config.json", "model.py", "model.safetensors"]
    assert_folders_give_logits_of({name: shelf.networks[name] for name in names}, tmp_path)
    for name in names:
        described = json.loads((tmp_path / name / "config.json").read_text())
        assert (described["class_names"], described["size"]) == ([str(digit) for digit in range(10)], 32)
        card = (tmp_path / name / "README.md").read_text()
        assert shelf.specs[name].id in card
        assert "top-1 10.00 % on the test images" in card
        assert "- Weights: trained with kdbench from random ones." in card
    assert "- Method: new layers\n" in card
    card = (tmp_path / "run" / "README.md").read_text()
    assert "- Method: 1·ce\n- Teacher: none\n- Epochs: 1, trial 0\n" in card
    assert "The other files" not in card


NET = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self, classes, width=4):
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, width, 3, 2), nn.ReLU(), pool, nn.Linear(width, classes))
"""


def test_a_network_from_elsewhere_brings_its_code(shelf, tmp_path):
    made, module = {}, tmp_path / "exported_nets.py"
    for name, role in (("run", "student"), ("teacher", "network")):
        module.write_text(NET)
        with locating_modules({"exported_nets": tmp_path}.get):
            net = network_spec("mine", "exported_nets:Net", arguments={"width": 6})
            spec = shelf.specs[name].model_copy(update={role: net})
            made[name] = new_network(net, spec.dataset, None, "student", 0).eval()
            keep_code(net, shelf.store)
        record, other = (
            (shelf.store.run if name == "run" else shelf.store.teacher)(each.id) for each in (spec, shelf.specs[name])
        )
        record.begin(spec.canonical())
        sha256 = write_tensors(record.weights_file, made[name].state_dict())
        fields = other.result().model_dump(exclude={"id", "weights_sha256"})
        record.write_metrics([])
        record.finish(Result(id=spec.id, weights_sha256=sha256, **fields), {})
        module.unlink()
        files = kdbench.export(spec.id, tmp_path / name, results=shelf.root)
        assert files == ["README.md", "config.json", "exported_nets.py", "model.py", "model.safetensors"]
        assert "the modules beside it" in (tmp_path / name / "README.md").read_text()
    assert_folders_give_logits_of(made, tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "format", ["torchscript", *(pytest.param(each, marks=pytest.mark.slow) for each in ("pt2", "onnx"))]
)
def test_each_format_takes_any_batch(shelf, tmp_path, format):
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    kdbench.export(shelf.specs["run"].id, tmp_path / "net", [format], shelf.root)
    file, _, read = exporting._WRITERS[format]
    images, facts = torch.rand(7, 3, 32, 32), shelf.specs["run"].dataset.facts
    with torch.no_grad():
        expected = Classifier(shelf.networks["run"], (), facts.mean, facts.std).eval()(images)
        found = read(tmp_path / "net" / file, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "net" / "README.md").read_text()
    assert "The other files take float images from 0 to 1, [B, 3, 32, 32]" in card
    assert f"- `{file}`: `" in card


@pytest.mark.parametrize(
    ("largest", "difference", "same"), [(0.1, 9e-5, True), (1, 1.1e-4, False), (50, 4e-3, True), (50, 6e-3, False)]
)
def test_logits_may_differ_by_a_ten_thousandth_of_the_largest(largest, difference, same):
    expected = torch.tensor([[0.0, -largest]])
    if same:
        exporting._compare("model.pt2", lambda: expected + difference, expected)
    else:
        with pytest.raises(KdbenchError, match=r"model\.pt2 gives other logits than the network"):
            exporting._compare("model.pt2", lambda: expected + difference, expected)


def origin(spec):
    return _origin(SimpleNamespace(spec=spec))


def test_the_card_says_where_weights_come_from():
    given = {"torchvision": Weights(source="torchvision"), "file": Weights(source="file", sha256="0" * 64)}
    first = {name: Imported(network="rn50", weights=each, dataset=IMAGENET) for name, each in given.items()}
    url = networks()["rn50"].public.url
    assert origin(first["torchvision"]) == f"began as imported ones (torchvision, {url})"
    assert origin(first["file"]) == "began as imported ones (file)"
    recipe = Recipe(epochs=1, batch=16, lr=0.02)
    layers = NewLayers(parent=first["file"], dataset=IMAGENET, head=HeadSpec(width=16, recipe=recipe))
    assert origin(layers) == "began as imported ones (file)"
    assert origin(Supervised(network="resnet8", dataset=IMAGENET, recipe=recipe)).startswith("trained with kdbench")
    assert origin(None) == "of a file from elsewhere"


@pytest.mark.parametrize("builder", sorted(OWN))
def test_the_source_of_each_family_is_whole(builder):
    known = networks()[OWN[builder]]
    text = standalone([(f"kdbench.models.{builder}", "build")])
    assert "kdbench" not in text
    names = {"__name__": "exported"}
    exec(compile(text, "model.py", "exec"), names)
    mine, theirs = names["build"](classes=10, **known.arguments).eval(), build(known.name, 10).eval()
    mine.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(mine(images).logits, theirs(images).logits)


def test_a_file_with_other_logits_leaves_no_folder(shelf, tmp_path, monkeypatch):
    file, write, read = exporting._WRITERS["torchscript"]
    wrong = (file, write, lambda path, images: read(path, images) + 0.01)
    monkeypatch.setitem(exporting._WRITERS, "torchscript", wrong)
    with pytest.raises(KdbenchError, match=r"model\.torchscript\.pt gives other logits than the network"):
        kdbench.export(shelf.specs["run"].id, tmp_path / "net", ["torchscript"], shelf.root)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(shelf, tmp_path, monkeypatch):
    id = shelf.specs["run"].id
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BadInput, match="full: is there already and not empty"):
        kdbench.export(id, tmp_path / "full", results=shelf.root)
    with pytest.raises(BadInput, match="format 'onxx': did you mean 'onnx'"):
        kdbench.export(id, tmp_path / "net", ["onxx"], shelf.root)
    monkeypatch.setattr(exporting, "_absent", lambda package: package == "onnxruntime")
    with pytest.raises(BadInput, match=r"needs onnxruntime, which cannot be imported: pip install 'kdbench\[onnx\]'"):
        kdbench.export(id, tmp_path / "net", ["onnx"], shelf.root)
    assert not (tmp_path / "net").exists()


@pytest.mark.slow
def test_the_command_names_its_files(shelf, tmp_path):
    arguments = [shelf.specs["teacher"].id, "-o", str(tmp_path / "net"), "--results", str(shelf.root)]
    done = CliRunner().invoke(app, ["export", *arguments, "--data", str(tmp_path)])
    assert "README.md, config.json, model.py, model.safetensors" in done.stdout
    done = CliRunner().invoke(app, ["export", *arguments])
    assert "not empty" in str(done.exception)


def test_a_card_says_what_the_folder_holds(shelf):
    found = find_network(shelf.specs["run"].id[:8], shelf.store, shelf.root, torch.device("cpu"))
    bare, whole = model_card(found, {}, False, ()), model_card(found, {}, True, ("onnx",))
    assert "There is no `model.py`: part of this network's code is not kdbench's." in bare
    assert "The other files" not in bare
    assert "There is no `model.py`" not in whole
    assert "`model.py` needs torch, safetensors" in whole
    assert "The other files take float images from 0 to 1, [B, 3, 32, 32], and normalise them:" in whole
