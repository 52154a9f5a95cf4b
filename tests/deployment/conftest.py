"""A results folder: a finished teacher, new layers on it, an encoder, a run and one that learned from the teacher.

All have the weights they start from.
"""

from types import SimpleNamespace

import pytest
import torch

from kdbench.data.stream import DataSource
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    NewLayers,
    Pretraining,
    Recipe,
    RunSpec,
    SelfSupervised,
    Supervised,
    WeightedTerm,
)
from kdbench.training.build import new_network, with_head
from kdbench.training.checkpoint import write_tensors


CPU = torch.device("cpu")
DIGITS = DatasetSpec(name="digits", train_per_class=4, test_per_class=6)
RECIPE = Recipe(epochs=1, batch=16, lr=0.02, momentum=0.9, weight_decay=5e-4, milestones=())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The store, its specs, and their networks in eval mode."""
    store = Store(tmp_path_factory.mktemp("shelf") / "results")
    teacher = Supervised(network="resnet8", dataset=DIGITS, recipe=RECIPE)
    layers = NewLayers(parent=teacher, dataset=DIGITS, head=HeadSpec(width=16, recipe=RECIPE))
    encoder = SelfSupervised(network="resnet8", dataset=DIGITS, pretraining=Pretraining(recipe=RECIPE))
    terms = (WeightedTerm(name="ce", weight=1.0, hyperparameters={}),)
    run = RunSpec(student="resnet14", terms=terms, dataset=DIGITS, recipe=RECIPE)
    taught = run.model_copy(update={"teacher": teacher, "trial": 1})
    (images, _), *_ = DataSource(store.root, CPU).test(DIGITS, RECIPE)
    networks = {"teacher": new_network("resnet8", DIGITS, None, "teacher", 0)}
    networks["teacher"](images)  # batch norms with statistics of these images
    networks["run"] = new_network("resnet14", DIGITS, None, "student", 0)
    networks["run"](images)
    networks["encoder"] = new_network("resnet8", DIGITS, None, "teacher", 0)
    networks["encoder"].remove_classifier()
    fresh = new_network("resnet8", DIGITS, None, "teacher", 0)
    fresh.load_state_dict(networks["teacher"].state_dict())
    networks["layers"] = with_head(fresh, layers)
    networks["taught"] = networks["run"]
    specs = {"teacher": teacher, "run": run, "taught": taught, "encoder": encoder, "layers": layers}
    hashes = {}
    for name, spec in specs.items():
        record = store.run(spec.id) if isinstance(spec, RunSpec) else store.teacher(spec.id)
        record.begin(spec.canonical())
        state = networks[name].eval().state_dict()
        kept = {key: each for key, each in state.items() if name != "layers" or not key.startswith("backbone.")}
        hashes[name] = write_tensors(record.weights_file, kept)
        last, best = Accuracy(epoch=2, top1=10.0, top5=50.0), Accuracy(epoch=1, top1=20.0, top5=60.0)
        fields = {"train_images": 40, "test_images": 60, "metrics_sha256": record.write_metrics([])}
        fields |= {"parent_sha256": hashes["teacher"]} if name == "layers" else {}
        kind = "run" if isinstance(spec, RunSpec) else "teacher"
        record.finish(Result(id=spec.id, kind=kind, last=last, best=best, weights_sha256=hashes[name], **fields), {})
    return SimpleNamespace(store=store, root=store.root, specs=specs, networks=networks, images=images)
