"""Curves in other tools: afterwards and live, with the real libraries where they are installed."""

import json

import pytest

from kdbench import tracking
from kdbench.errors import BadInput
from kdbench.suite.load import load_suite
from kdbench.tracking import Tool, Tracking, curves_of, open_tracker, scalars


class Heard:
    """A tracker that keeps what it is told."""

    def __init__(self, folder, live):
        self.folder, self.live, self.told, self.closed = folder, live, [], False

    def log(self, curve, epoch, values):
        self.told.append((curve.name, epoch, dict(values)))

    def end(self, curve, *, failed=False):
        self.told.append((curve.name, "failed" if failed else "done"))

    def close(self):
        self.closed = True


@pytest.fixture
def heard(monkeypatch):
    """The trackers that were opened."""
    opened = []

    def make(folder, live):
        opened.append(Heard(folder, live))
        return opened[-1]

    monkeypatch.setattr(tracking, "_TRACKERS", dict.fromkeys(Tool, make))
    return opened


NAME = "digits, resnet8 ce #0"


def test_what_is_stored_is_handed_over_with_terms_as_far_as_they_are_numbers(kdbench, suite_file, finished, heard):
    done = kdbench("export-logs", suite_file, "--to", "wandb", "-o", "out")
    assert done.returncode == 0
    assert "1 curves in out. Upload: wandb sync out/wandb" in done.stdout
    (tracker,) = heard
    first, second, end = tracker.told
    assert first == (NAME, 1, {"loss": 2.5, "terms/ce": 2.5})
    assert (second, end) == ((NAME, 2, {"loss": 2.0}), (NAME, "done"))
    assert tracker.closed
    assert not tracker.live


def test_what_stands_in_the_way_is_said(kdbench, suite_file, finished, tmp_path, heard, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    full = kdbench("export-logs", suite_file, "-o", "full")
    assert (full.returncode, full.stderr.strip()) == (2, "full: is not empty: name a new folder with -o")
    none = kdbench("export-logs", suite_file, "-o", "new", "--only", "method=kd")
    assert (none.returncode, "there are no curves" in none.stderr) == (2, True)
    monkeypatch.setattr(Heard, "log", lambda *rest: (_ for _ in ()).throw(RuntimeError("no quota")))
    broken = kdbench("export-logs", suite_file, "-o", "new")
    assert (broken.returncode, "tensorboard does not take the curves: no quota" in broken.stderr) == (1, True)


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch):
    def missing(folder, live):
        raise ImportError("No module named 'wandb'")

    monkeypatch.setitem(tracking._TRACKERS, Tool.wandb, missing)
    with pytest.raises(
        BadInput, match=r"wandb cannot be imported \(No module named 'wandb'\): pip install 'kdbench\[wandb\]'"
    ):
        open_tracker(Tool.wandb, "folder", live=True)


def test_events_are_handed_over_while_they_come(suite_file, tmp_path):
    said = []
    suite = load_suite(suite_file)
    run, other = suite.runs
    tracker = Heard(tmp_path, live=True)
    live = Tracking(tracker, [suite], said.append)
    live.listen("cpu", {"event": "epoch", "id": run.id, "epoch": 1, "epochs": 2, "loss": 2.0, "top1": None})
    live.listen("cpu", {"event": "under way", "id": run.id, "epoch": 1})
    live.listen("cpu", {"event": "epoch", "id": "not of the suite", "epoch": 1, "loss": 2.0})
    live.listen("", {"event": "message", "text": "hello"})
    live.listen("cpu", {"event": "finished", "id": run.id, "top1": 50.0})
    live.listen("", {"event": "failed", "id": other.id, "reason": "lost"})
    live.close()
    assert tracker.told == [(NAME, 1, {"loss": 2.0}), (NAME, "done"), (curves_of([suite])[other.id].name, "failed")]
    assert said == []
    assert tracker.closed


def test_a_tool_that_fails_is_not_asked_again_and_stops_nothing(suite_file, tmp_path):
    said = []
    suite = load_suite(suite_file)
    tracker = Heard(tmp_path, live=True)
    tracker.log = lambda *rest: 1 / 0
    live = Tracking(tracker, [suite], said.append)
    for epoch in (1, 2):
        live.listen("cpu", {"event": "epoch", "id": suite.runs[0].id, "epoch": epoch, "loss": 1.0})
    live.close()
    assert said == ["nothing more is tracked: division by zero"]
    assert not tracker.closed


def test_scalars_are_numbers():
    row = {"epoch": 3, "lr": 0.1, "terms": {"kd": 1, "ce": "x"}, "attention": [[1.0]], "top1": None}
    assert scalars(row) == {"lr": 0.1, "terms/kd": 1.0}


@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_what_was_exported(kdbench, suite_file, finished, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here")
    assert kdbench("export-logs", suite_file, "-o", "out").returncode == 0
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == f"digits-resnet8-ce-#0-{finished.id}"
    read = events.EventAccumulator(str(folder))
    read.Reload()
    assert [(each.step, each.tensor_proto.float_val[0]) for each in read.Tensors("loss")] == [(1, 2.5), (2, 2.0)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_reads_what_was_exported(kdbench, suite_file, finished, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="no mlflow here")
    assert kdbench("export-logs", suite_file, "--to", "mlflow", "-o", "out").returncode == 0
    client = mlflow.MlflowClient((tmp_path / "out").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("kdbench").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["method"]) == (NAME, "FINISHED", "ce")
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 2.5),
        (2, 2.0),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_keeps_what_was_exported_to_be_synchronised(kdbench, suite_file, finished, tmp_path):
    pytest.importorskip("wandb", reason="no wandb here")
    from wandb.proto import wandb_internal_pb2

    assert kdbench("export-logs", suite_file, "--to", "wandb", "-o", "out").returncode == 0
    (file,) = (tmp_path / "out").rglob("*.wandb")
    content, position, rows = file.read_bytes(), 7, []
    while position < len(content):  # each record has a header of seven bytes, two of them its length
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[position + 7 : position + 7 + length])
        position += 7 + length
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        rows += [(items["epoch"], items["loss"])] if "epoch" in items else []
    assert rows == [(1, 2.5), (2, 2.0)]
