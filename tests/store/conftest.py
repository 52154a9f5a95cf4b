import pytest

from kdbench.files import file_hash
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.load import load_suite


TEXT = """\
name: two
protocol: smoke
dataset: {name: digits, train_per_class: 4, test_per_class: 2}
trials: 2
grid: {teacher: resnet20, student: resnet8, method: [ce, kd]}
"""

ABOUT = {
    "device": {"kind": "cpu", "name": "A processor"},
    "versions": {"kdbench": "0.2.0", "torch": "2.13.0"},
    "finished": "2026-01-02T03:04:05Z",
}


@pytest.fixture
def suite(tmp_path):
    """Four runs, two of which learn from the same teacher."""
    (tmp_path / "two.yaml").write_text(TEXT)
    return load_suite(tmp_path / "two.yaml")


@pytest.fixture
def put():
    """put(record, spec, …): finish a record with a curve and weights."""

    def finish(record, spec, kind="run", top1=50.0, weights=b"weights", parent=None, about=ABOUT):
        record.begin(spec.canonical())
        record.weights_file.write_bytes(weights)
        curve = record.write_metrics([{"epoch": 1, "loss": 2.0, "terms": {}, "top1": top1}])
        accuracy = Accuracy(epoch=1, top1=top1, top5=90.0)
        result = Result(
            id=record.id, kind=kind, last=accuracy, best=accuracy, parent_sha256=parent,
            weights_sha256=file_hash(record.weights_file), metrics_sha256=curve,
        )  # fmt: skip
        record.finish(result, dict(about))
        return result

    return finish


@pytest.fixture
def made(tmp_path, suite, put):
    """made(name, …): a results folder in which the runs with these methods, or of a part of the suite, are finished.

    It holds their teacher and their suite, too.
    """

    def make(name, methods=("ce", "kd"), teacher=b"teacher", part=suite, **changes):
        store = Store(tmp_path / name)
        for run in part.runs:
            if run.method not in methods:
                continue
            parent = None
            if run.spec.teacher:
                record = store.teacher(run.spec.teacher.id)
                parent = (record.result() or put(record, run.spec.teacher, "teacher", 90.0, teacher)).weights_sha256
            put(store.run(run.id), run.spec, parent=parent, **changes)
        keep_suites([part], store)
        return store

    return make


@pytest.fixture
def content():
    """What the records, suites and code in a results folder are: all files but locks, logs and about.json, by path."""

    def read(store):
        paths = (path for path in store.root.rglob("*") if path.is_file())
        names = {path.relative_to(store.root).as_posix(): path.read_bytes() for path in paths}
        return {name: text for name, text in names.items() if name[:4] not in ("lock", "logs") and "about" not in name}

    return read
