import pytest

from kdbench.report.rows import Row
from kdbench.store.record import Accuracy, Result


@pytest.fixture
def row():
    """A row of a table, with single fields changed."""

    def make(trial=0, top1=None, **changes):
        fields = {
            "suite": "s", "protocol": "crd", "paper": "crd", "score": "last", "dataset": "cifar100", "scenario": "",
            "strategy": "pretrained", "teacher": "resnet32x4", "student": "resnet8x4", "method": "kd",
            "run_id": "0" * 12,
            "teacher_id": "",
            "status": "done" if top1 is not None else "missing",
            "reason": "" if top1 is not None else "not run",
        }  # fmt: skip
        return Row(trial=trial, top1=top1, **(fields | changes))

    return make


@pytest.fixture
def finish():
    """Store a result."""

    def store_result(record, last=50.0, best=60.0, kind="run", **about):
        result = Result(
            id=record.id, kind=kind, last=Accuracy(epoch=4, top1=last, top5=90.0),
            best=Accuracy(epoch=2, top1=best, top5=91.0), train_images=1, test_images=1, weights_sha256="",
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
