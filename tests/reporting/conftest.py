import pytest

from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store


@pytest.fixture
def row():
    """A row of ``collect``, with single columns changed."""

    def make(trial=0, top1=None, **changes):
        columns = {
            "suite": "s", "protocol": "crd", "paper": "crd", "score": "last", "dataset": "cifar100", "scenario": "",
            "strategy": "pretrained", "teacher": "resnet32x4", "student": "resnet8x4", "method": "kd", "trial": trial,
            "run_id": "0" * 12, "teacher_id": "", "top1": top1, "version": "", "teacher_checkpoint": "last",
            "status": "done" if top1 is not None else "missing",
            "reason": "" if top1 is not None else "not run",
            "teacher_paper": "", "setting": "", "teacher_sha256": "", "teachers": "", "teacher_stated": "", "terms": "",
            "torch": "", "device": "",
        }  # fmt: skip
        return columns | changes

    return make


@pytest.fixture
def finish():
    """Store a result."""

    def store_result(record, last=50.0, best=60.0, kind="run", weights="", parent=None, **about):
        result = Result(
            id=record.id, kind=kind, last=Accuracy(epoch=4, top1=last, top5=90.0),
            best=Accuracy(epoch=2, top1=best, top5=91.0), train_images=1, test_images=1,
            weights_sha256=weights, parent_sha256=parent,
        )  # fmt: skip
        record.finish(result, about)

    return store_result


@pytest.fixture
def load(tmp_path):
    from kdbench.suite.load import load_suite

    def from_text(text):
        file = tmp_path / "suite.yaml"
        file.write_text(text, encoding="utf-8")
        return load_suite(file)

    return from_text


@pytest.fixture
def about():
    """What a run's metadata.json holds."""
    return {
        "finished": "2026-01-02T03:04:05Z", "seconds": 60.0, "macs": 5e12, "system": "Linux x86_64",
        "device": {"kind": "gpu", "name": "A card", "threads": 2},
        "versions": {"kdbench": "0.1.0", "torch": "2.9", "numpy": "2.1", "python": "3.12"},
    }  # fmt: skip


@pytest.fixture
def trained(tmp_path, load, about):
    """A suite of which all runs but the last are done, with curves and rising accuracies, and its store."""

    def train(text):
        suite, store = load(text), Store(tmp_path / "results")
        for number, run in enumerate(suite.runs[:-1]):
            record, accuracy = store.run(run.id), Accuracy(epoch=4, top1=50.0 + number, top5=90.0)
            record.begin(run.spec.canonical())
            curve = [{"epoch": e, "loss": 2 / e, "terms": {}, "top1": 10.0 * e + number} for e in range(1, 5)]
            record.write_metrics(curve)
            result = Result(
                id=record.id, kind="run", last=accuracy, best=accuracy, train_images=1, test_images=1, weights_sha256=""
            )
            record.finish(result, about)
        return suite, store

    return train
