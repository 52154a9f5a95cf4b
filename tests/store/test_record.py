"""Records: done, failed, started, damaged."""

import json
import os
import subprocess
import sys

import pytest

from kdbench.errors import BadInput, BadRecord, LostLease
from kdbench.files import file_hash
from kdbench.store.result import Accuracy, Failure, Result, compute_of
from kdbench.store.store import Store


ID = "0123456789ab"
ACCURACY = Accuracy(epoch=2, top1=51.25, top5=80.0)
RESULT = Result(id=ID, kind="run", last=ACCURACY, best=ACCURACY, train_images=10, test_images=5, weights_sha256="00")


@pytest.fixture
def record(tmp_path):
    return Store(tmp_path / "results").run(ID)


def write(record, name, content):
    record.folder.mkdir(parents=True, exist_ok=True)
    (record.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_reading_creates_nothing(record):
    assert record.result() is None
    assert record.failure() is None
    assert not record.done()
    assert not record.has_checkpoint()
    assert (record.metrics(), record.metadata(), record.spec()) == ([], {}, {})
    assert (record.version(), compute_of(record.metadata())) == ("", ("", 0.0, 0.0))
    assert not record.folder.parent.parent.exists()


def test_the_life_of_a_record(record):
    assert record.begin({"student": "vgg8"}) == []
    assert record.spec() == {"student": "vgg8"}
    write(record, "state.pt", b"x")
    assert record.has_checkpoint()
    record.write_metrics([{"epoch": 1}, {"epoch": 2}])
    assert record.metrics() == [{"epoch": 1}, {"epoch": 2}]
    record.finish(RESULT, {"versions": {"kdbench": "1"}, "device": {"kind": "cpu"}, "macs": 8, "seconds": 2})
    assert record.done()
    assert record.result() == RESULT
    assert not record.has_checkpoint()
    assert (record.version(), compute_of(record.metadata())) == ("1", ("cpu", 8.0, 2.0))


@pytest.mark.parametrize(
    ("seconds", "known"),
    [(0, True), (1e-7, False), (2e-6, True), (9e11, True), (1e13, False), (-1, False), ("2", False)],
)
def test_a_cost_is_unknown_where_its_seconds_are_impossible(seconds, known):
    cost = compute_of({"device": {"kind": "cpu"}, "macs": 8, "seconds": seconds})
    assert cost == (("cpu", 8.0, seconds) if known else ("", 0.0, 0.0))


def test_the_score_rule_chooses_between_the_last_and_the_best_epoch():
    best = Accuracy(epoch=1, top1=60.0, top5=90.0)
    result = RESULT.model_copy(update={"best": best})
    assert (result.accuracy("last"), result.accuracy("best")) == (ACCURACY, best)
    assert Result(id=ID, kind="teacher", weights_sha256="00").accuracy("best") is None
    for missing in ("last", "best"):
        with pytest.raises(ValueError, match="holds its last and its best accuracy"):
            Result.model_validate(RESULT.model_dump() | {missing: None})


def test_equal_results_are_equal_bytes(record):
    record.finish(RESULT, {})
    first = (record.folder / "result.json").read_bytes()
    with pytest.raises(LostLease, match="another process has finished it meanwhile"):
        record.finish(RESULT, {"when": "later"}, replace=False)
    (record.folder / "result.json").unlink()
    record.finish(RESULT, {"when": "later"})
    assert (record.folder / "result.json").read_bytes() == first


GOOD = RESULT.model_dump_json()


@pytest.mark.parametrize(
    "content",
    [
        "", "{", GOOD[:-20], "[]", "null", "5", b"\xff\xfe", "[" * 100_000,
        GOOD.replace("51.25", "151.25"), GOOD.replace("51.25", "NaN"), GOOD.replace("51.25", "null"),
        GOOD.replace(ID, "ffffffffffff"), GOOD.replace('"run"', '"walk"'), GOOD.replace('"id"', '"ID"'),
        json.dumps({**json.loads(GOOD), "more": 1}),
    ],
)  # fmt: skip
def test_damaged_results(record, content):
    write(record, "result.json", content)
    with pytest.raises(BadRecord, match=r"result\.json: "):
        record.result()
    assert not record.done()
    (message,) = record.begin({})
    assert "quarantined as result.json.damaged-1" in message
    assert record.result() is None
    assert (record.folder / "result.json.damaged-1").exists()


def test_a_folder_in_the_place_of_a_result(record):
    (record.folder / "result.json").mkdir(parents=True)
    with pytest.raises(BadRecord, match="is a folder"):
        record.result()
    assert "quarantined" in record.begin({})[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "5", b"\xff", '{"kind": "x"}', "[" * 100_000])
def test_damaged_side_files_are_as_if_absent(record, content):
    for name in ("failure.json", "metadata.json", "spec.json", "metrics.jsonl"):
        write(record, name, content)
    assert record.failure() is None
    assert record.metadata() in ({}, {"kind": "x"})
    assert record.version() == ""
    assert record.metrics() in ([], [{"kind": "x"}])


def test_torn_lines_of_metrics_are_left_out(record):
    write(record, "metrics.jsonl", '{"epoch": 1}\n5\n{"epoch": 2}\n{"epo')
    assert record.metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_failures(record):
    write(record, "state.pt", b"x")
    record.fail(Failure(kind="error", epoch=3, reason="out of memory"))
    assert record.failure().reason == "out of memory"
    assert record.has_checkpoint()
    record.fail(Failure(kind="diverged", epoch=3, reason="loss is nan"))
    assert not record.has_checkpoint()
    record.begin({"a": 1})
    assert record.failure() is None


HOLD = """
import sys
from pathlib import Path
from kdbench.store.store import Store
with Store(Path(sys.argv[1])).run(sys.argv[2]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locks_are_held_across_processes_and_freed_by_death(record):
    root = record.folder.parent.parent
    assert not record.is_locked()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), ID], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert record.is_locked()
        assert not Store(root).run("ffffffffffff").is_locked()
        assert not Store(root).teacher(ID).is_locked()
        holder.kill()
        holder.wait()
    assert not record.is_locked()


def test_listing(tmp_path):
    store = Store(tmp_path)
    assert list(store.records("runs")) == []
    for name in ("bb", "aa"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("")
    (tmp_path / "runs" / ".ipynb_checkpoints").mkdir()
    assert [record.id for record in store.records("runs")] == ["aa", "bb"]


def test_writable(tmp_path):
    store = Store(tmp_path / "new" / "results")
    store.check_writable()
    assert not [entry for entry in store.root.rglob("*") if entry.is_file()]


@pytest.mark.parametrize("blocked", ["", "runs", "teachers", "locks"])
def test_not_writable(tmp_path, blocked):
    root = tmp_path / "results"
    if blocked:
        root.mkdir()
    (root / blocked if blocked else root).write_text("a file")
    with pytest.raises(
        BadInput, match=rf"cannot write results to {root / blocked}: .*Choose another folder with --results"
    ):
        Store(root).check_writable()
    with pytest.raises(BadInput, match="cannot write results"):
        Store((root / blocked if blocked else root) / "below").check_writable()


def test_file_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" + os.urandom(0))
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_id_is_named_by_its_first_four_digits(tmp_path):
    store = Store(tmp_path)
    for id in ("abcd00000001", "abcd00000002", "abce00000001"):
        (tmp_path / "runs" / id).mkdir(parents=True)
    assert store.find("runs", "abce").id == "abce00000001"
    assert store.find("runs", "abc") is store.find("runs", "ffff") is store.find("teachers", "abce") is None
    with pytest.raises(BadInput, match=r"'abcd' begins the ids of several runs in .*: abcd00000001, abcd00000002$"):
        store.find("runs", "abcd")


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({}, ""),
        ({"published_top1": 51.0}, ""),
        ({"published_top1": 51.01}, "its file states 51.01 % of its weights, and 50.00 % is measured here"),
        ({"published_top1": 50.0, "published_best": 60.0}, ""),
        ({"published_best": 48.9}, "its file states 48.90 % as the best of its training"),
    ],
)
def test_an_accuracy_that_a_file_states_may_be_a_point_away(stated, said):
    measured = Accuracy(epoch=0, top1=50.0, top5=90.0)
    result = Result(id="0" * 12, kind="teacher", last=measured, best=measured, weights_sha256="", **stated)
    assert result.contradiction(measured).startswith(said)
    assert bool(result.contradiction(measured)) == bool(said)
    assert result.contradiction(None) == ""
