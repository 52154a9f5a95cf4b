"""Records: done, failed, started, damaged."""

import json
import os
import subprocess
import sys

import pytest

from kdbench.errors import BadInput, BadRecord, LostLease
from kdbench.files import file_hash
from kdbench.store.record import NO_WEIGHTS
from kdbench.store.result import Accuracy, Failure, Result, compute_of
from kdbench.store.store import Store
from kdbench.suite.specs import digest


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
    [
        (0, True),
        (1e-6, False),
        (1.001e-6, True),
        (9.99e11, True),
        (1e12, False),
        (-1, False),
        ("2", False),
        (None, False),
    ],
)
def test_a_cost_is_unknown_where_its_seconds_are_impossible(seconds, known):
    cost = compute_of({"device": {"kind": "cpu"}, "macs": 8, "seconds": seconds})
    assert cost == (("cpu", 8.0, seconds) if known else ("", 0.0, 0.0))


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ({}, True), ({"macs": 0}, True), ({"macs": 9.99e29}, True), ({"macs": 1e30}, False), ({"macs": -1}, False),
        ({"macs": "8"}, False), ({"device": "cpu"}, False), ({"device": {"kind": 1}}, False),
    ],
)  # fmt: skip
def test_a_cost_needs_a_device_and_possible_accumulates(facts, known):
    facts = {"device": {"kind": "cpu"}, "macs": 8, "seconds": 2, **facts}
    assert compute_of(facts) == (("cpu", float(facts["macs"]), 2.0) if known else ("", 0.0, 0.0))


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("published_top1", (0.0, 100.0), (-0.1, 100.1)),
        ("published_best", (0.0, 100.0), (-0.1, 100.1)),
        ("sm_score", (-1e100, 1e100), (-1.1e100, 1.1e100)),
        ("train_images", (0, 2**53 - 1), (-1, 2**53)),
        ("changed_labels", (0, 2**53 - 1), (-1, 2**53)),
    ],
)
def test_numbers_of_a_result_are_within_their_bounds(field, good, bad):
    facts = RESULT.model_dump()
    for value in good:
        assert getattr(Result.model_validate(facts | {field: value}), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=field):
            Result.model_validate(facts | {field: value})


def test_of_a_result_without_more_nothing_more_is_known():
    result = Result(id=ID, kind="teacher", weights_sha256="00")
    assert result.model_dump(exclude_defaults=True) == {"id": ID, "kind": "teacher", "weights_sha256": "00"}
    assert (result.train_images, result.test_images, result.measure) == (0, 0, "classifier")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "machine and versions unknown"),
        ({"versions": {"kdbench": "1", "torch": "2"}, "device": {"name": "A card"}}, "kdbench 1, torch 2, A card"),
        ({"versions": {"kdbench": 1, "torch": "2"}, "device": "A card"}, "torch 2"),
        ({"versions": "1", "device": {"name": "A card"}}, "A card"),
    ],
)
def test_a_record_names_what_made_it_as_far_as_known(record, metadata, words):
    write(record, "metadata.json", json.dumps(metadata))
    assert str(record.made_by()) == words


def finished(record, about=None, **facts):
    """Finish a record whose files are what its result says."""
    record.begin({"a": 1})
    record.weights_file.write_bytes(b"weights")
    hashes = {"weights_sha256": file_hash(record.weights_file), "metrics_sha256": record.write_metrics([{"epoch": 1}])}
    record.finish(RESULT.model_copy(update={"id": record.id, **hashes, **facts}), about or {})
    return record.result()


@pytest.fixture
def whole(tmp_path):
    """A record of the spec {"a": 1}."""
    return Store(tmp_path / "results").run(digest({"a": 1}))


def problems(record):
    result = record.result()
    return [str(each).removeprefix(f"{record.folder}/") for each in record.small_file_problems(result)] + [
        str(each).removeprefix(f"{record.folder}/") for each in record.weight_problems(result)
    ]


def test_each_file_of_a_record_that_is_not_what_was_stored_is_a_problem(whole):
    with pytest.raises(BadRecord, match=f"{whole.folder}: there is no finished network$"):
        whole.check()
    result = finished(whole)
    assert (problems(whole), whole.check()) == ([], result)
    for name, content in (("spec.json", '{"a": 2}'), ("metrics.jsonl", ""), ("weights.safetensors", "")):
        (whole.folder / name).write_text(content)
    assert problems(whole) == [
        "spec.json: is not what was stored",
        "metrics.jsonl: is not the file that was stored (its SHA-256 has changed)",
        "weights.safetensors: is not the file that was stored (its SHA-256 has changed)",
    ]
    (whole.folder / "spec.json").unlink()
    whole.weights_file.unlink()
    assert problems(whole)[::2] == ["spec.json: is missing", "weights.safetensors: is missing"]


def test_without_a_hash_a_file_is_not_looked_at(whole):
    finished(whole, metrics_sha256=None)
    (whole.folder / "metrics.jsonl").write_text("changed")
    whole.teacher_head_file.write_text("of no result")
    assert problems(whole) == []


@pytest.mark.parametrize(
    ("about", "there", "said"),
    [
        (NO_WEIGHTS, False, "was not kept"),
        ({}, False, "is missing"),
        (NO_WEIGHTS, True, "is not the file that was stored (its SHA-256 has changed)"),
    ],
)
def test_weights_that_were_not_kept_are_told_from_those_that_are_gone(whole, about, there, said):
    finished(whole, about, teacher_head_sha256="5" * 64)
    whole.weights_file.write_text("changed") if there else whole.weights_file.unlink()
    assert problems(whole) == [
        f"weights.safetensors: {said}",
        f"teacher_head.safetensors: {'is missing' if about == {} else 'was not kept'}",
    ]
    assert whole.keeps_weights() == (about == {})


def test_a_quick_check_looks_at_the_length_of_weights_that_are_there(whole):
    result = finished(whole)
    whole.weights_file.unlink()
    assert whole.check(quick=True) == result
    whole.teacher_head_file.write_bytes(b"no header")
    with pytest.raises(BadRecord, match=r"teacher_head\.safetensors: is not the file that was stored"):
        whole.check(quick=True)


@pytest.mark.parametrize("kind", ["diverged", "error"])
def test_a_record_has_ended_with_a_result_or_when_it_diverged(whole, kind):
    assert (whole.outcome(), whole.diverged()) == (None, False)
    failure = Failure(kind=kind, epoch=3, reason="x")
    whole.begin({"a": 1})
    whole.fail(failure)
    assert (whole.outcome(), whole.diverged()) == ((failure, True) if kind == "diverged" else (None, False))
    result = finished(whole)
    whole.fail(failure)
    assert (whole.outcome(), whole.diverged()) == (result, False)


def test_a_result_of_another_record_or_with_another_checksum_is_refused(whole):
    finished(whole)
    file = whole.folder / "result.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "train_images": 11}))
    with pytest.raises(BadRecord, match=r"is not what was stored \(its checksum does not fit\)$"):
        whole.result()
    file.write_text(json.dumps({**content, "checksum": None}))
    with pytest.raises(BadRecord, match="its checksum does not fit"):
        whole.result()
    whole.folder.rename(whole.folder.with_name("f" * 12))
    (whole.folder.with_name("f" * 12) / "result.json").write_text(json.dumps(content))
    with pytest.raises(BadRecord, match=f"belongs to {whole.id}$"):
        Store(whole.folder.parent.parent).run("f" * 12).result()


def test_a_spec_is_written_once(record):
    record.begin({"a": 1})
    written = (record.folder / "spec.json").stat().st_ino
    assert record.begin({"a": 1}) == []
    assert (record.folder / "spec.json").stat().st_ino == written
    record.begin({"a": 2})
    assert record.spec() == {"a": 2}


def test_whoever_finds_a_finished_record_has_come_too_late(record):
    record.check_unfinished()
    record.begin({})
    record.check_unfinished()
    write(record, "result.json", "{}")
    with pytest.raises(LostLease, match=f"{record.folder}: another process has finished it meanwhile$"):
        record.check_unfinished()


def test_a_record_is_locked_beside_the_records_and_by_one_lock_for_all_of_a_store(tmp_path):
    store = Store(tmp_path)
    assert store.run(ID).lock() is store.run(ID).lock()
    assert store.run(ID).lock().path == tmp_path / "locks" / f"runs-{ID}.lock"
    assert store.teacher(ID).lock() is not store.run(ID).lock()


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
        ({"published_top1": 49.0}, ""),
        (
            {"published_top1": 48.99},
            "its file states 48.99 % of its weights, and 50.00 % is measured here: check mean and std, the images' size, "
            "and the order of the classes",
        ),
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
