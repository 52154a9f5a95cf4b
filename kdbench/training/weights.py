"""Weights from elsewhere: where their files are, and how they become a teacher's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdbench.catalogue.networks import PublicWeights, network
from kdbench.data.batch import seed_of
from kdbench.data.stream import DataSource
from kdbench.datafiles.download import fetch_file
from kdbench.errors import BadInput
from kdbench.evaluation import measure
from kdbench.files import file_hash, quarantine
from kdbench.models import build
from kdbench.models.backbone import Backbone
from kdbench.models.checkpoints import load_checkpoint, published_accuracy
from kdbench.store.lock import Lock
from kdbench.store.record import Accuracy, Record, Result, timestamp
from kdbench.suite.specs import Imported
from kdbench.training.build import on_device
from kdbench.training.checkpoint import write_tensors
from kdbench.training.seeds import seed_key


@dataclass(frozen=True)
class WeightFiles:
    """Where files of weights are: the user's by their SHA-256, the published ones in one folder.

    ``note`` hears why it takes long.
    """

    folder: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    download: bool = False
    note: Callable[[str], None] = lambda text: None

    def find(self, spec: Imported) -> Path | None:
        """The file of a teacher's first stage, checked; None for random weights.

        Raises BadInput with what to do where it is not there.
        """
        if spec.weights.source == "random":
            return None
        if spec.weights.sha256 is not None:
            return self._given(spec.weights.sha256)
        return self._published(spec.network)

    def _given(self, sha256: str) -> Path:
        path = self.given.get(sha256)
        if path is None:
            raise BadInput(
                f"the weights sha256:{sha256} are not among the teachers here. Import their file first: "
                "kdbench teachers import FILE --network … --dataset …"
            )
        if not path.is_file() or file_hash(path) != sha256:
            raise BadInput(f"{path}: is not the file any more that the suite was read with")
        return path

    def _published(self, name: str) -> Path:
        facts = network(name)
        if facts.public is None:
            raise BadInput(f"kdbench knows no published weights of {name}")
        path = self.folder / facts.public.file
        if self.download:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Lock(path.with_name(f".{path.name}.lock")).wait(str(path), self.note):
                if path.is_file() and _wrong(path, facts.public):
                    quarantine(path)
                if not path.is_file():
                    fetch_file(facts.public.url, path)
        elif not path.is_file():
            raise BadInput(facts.public.how_to_get(self.folder))
        if found := _wrong(path, facts.public):
            raise BadInput(
                f"{path}: is not the published file (its SHA-256 is {found[:12]}…, expected {facts.public.sha256[:12]}…). "
                f"Remove it, and download {facts.public.url} again."
            )
        return path


def _wrong(path: Path, public: PublicWeights) -> str:
    """The hash of a file that is not the published one; "" where it is."""
    found = file_hash(path)
    return "" if found.startswith(public.sha256) else found


def store_weights(
    spec: Imported, record: Record, path: Path | None, data: DataSource, about: dict[str, object]
) -> Result:
    """Keep a file's weights as a teacher, with the accuracy that they have here beside the one that the file states.

    Without a file these are random weights, as the spec in the record says.

    Raises BadInput, with nothing written, where the file does not hold the teacher's network.
    """
    weights = spec.weights
    net = _network(spec)
    if path:
        load_checkpoint(net, path, classifier=weights.classifier, key=weights.key)
    if not weights.classifier:
        net.remove_classifier()
    last: Accuracy | None = None
    test_images = 0
    if spec.dataset and weights.classifier:
        test = data.test(spec.dataset, weights.preprocessing)
        test_images = len(test)
        (scores,) = measure([on_device(net, data.device)], test)
        last = Accuracy(epoch=0, top1=scores.top1, top5=scores.top5)
    record.begin(spec.canonical())
    sha256 = write_tensors(record.weights_file, net.state_dict())
    result = Result(
        id=record.id,
        kind="teacher",
        last=last,
        best=last,
        published_top1=published_accuracy(path) if path and last else None,
        test_images=test_images,
        weights_sha256=sha256,
        metrics_sha256=record.write_metrics([]),
    )
    origin = {"file": path.name} if path else {}
    record.finish(result, {"finished": timestamp(), "seconds": 0.0, "sessions": 1, **origin, **about})
    return result


def _network(spec: Imported) -> Backbone:
    """The network with fresh weights, drawn for the teacher alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("teacher's weights", seed_key(spec)))
        return build(spec.network, spec.dataset.class_count if spec.dataset else 1)
