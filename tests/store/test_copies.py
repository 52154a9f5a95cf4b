"""A record is copied file by file: what else lies in its folder, links and devices stay behind."""

import json
import os

import pytest

from kdbench.errors import BadRecord
from kdbench.files import file_hash
from kdbench.store.exchange import basis, check_copyable, copy_record
from kdbench.store.record import NO_WEIGHTS, Record
from kdbench.store.result import Failure, Result
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, StudentOf, Supervised, WeightedTerm, digest


@pytest.fixture
def record(tmp_path):
    spec = {"network": "resnet8"}
    record = Record(tmp_path / "from" / digest(spec))
    record.begin(spec)
    record.write_metrics([])
    record.weights_file.write_bytes(b"weights")
    record.finish(Result(id=record.id, kind="teacher", weights_sha256=file_hash(record.weights_file)), {})
    return record


def test_only_the_files_of_a_record_are_copied(record, tmp_path):
    (record.folder / "zero").symlink_to("/dev/zero")
    (record.folder / "notes.txt").write_text("mine")
    target = tmp_path / "to" / record.id
    copy_record(record, target)
    names = {"spec.json", "metrics.jsonl", "weights.safetensors", "metadata.json", "result.json"}
    assert {path.name for path in target.iterdir()} == names
    assert [path.name for path in target.parent.iterdir()] == [record.id]
    Record(target).check()


@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.jsonl", "result.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_the_place_of_files_are_refused(record, tmp_path, name, kind):
    path = record.folder / name
    path.unlink()
    path.symlink_to("/dev/zero") if kind == "link" else os.mkfifo(path)
    with pytest.raises(BadRecord, match=f"{name}: is a link or a device"):
        check_copyable(record)


def test_a_copy_that_cannot_be_finished_leaves_nothing(record, tmp_path):
    target = tmp_path / "to" / record.id
    record.weights_file.write_bytes(b"others")
    with pytest.raises(BadRecord, match="its SHA-256 has changed"):
        copy_record(record, target)
    assert list(target.parent.iterdir()) == []
    with (record.folder / "metrics.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadRecord, match=r"metrics\.jsonl: has 1,099,511,627,776 bytes"):
        check_copyable(record)


@pytest.fixture
def diverged(tmp_path):
    spec = {"network": "resnet8", "lr": 9}
    record = Record(tmp_path / "from" / digest(spec))
    record.begin(spec)
    record.write_metrics([])
    record.fail(Failure(kind="diverged", epoch=1, reason="the loss is nan"))
    return record


def test_a_diverged_record_is_copied_if_its_spec_is_what_was_stored(diverged, tmp_path):
    check_copyable(diverged)
    target = tmp_path / "to" / diverged.id
    copy_record(diverged, target)
    assert {path.name for path in target.iterdir()} == {"spec.json", "metrics.jsonl", "failure.json"}
    (diverged.folder / "spec.json").write_text("{}")
    with pytest.raises(BadRecord, match=r"spec\.json: is not what was stored$"):
        check_copyable(diverged)


@pytest.mark.parametrize("kept", [True, False])
def test_weights_are_read_to_their_end_unless_they_were_not_kept(record, kept):
    (record.folder / "metadata.json").write_text(json.dumps({} if kept else NO_WEIGHTS))
    if kept:
        check_copyable(record)
    record.weights_file.unlink()
    if kept:
        with pytest.raises(BadRecord, match=r"weights\.safetensors: is missing$"):
            check_copyable(record)
    else:
        check_copyable(record)


def test_a_copy_takes_the_place_of_an_unfinished_record_or_a_link_and_of_what_was_half_copied(record, tmp_path):
    target = tmp_path / "to" / record.id
    (target / "old").mkdir(parents=True)
    half = target.parent / f".{record.id}.copy.tmp" / record.id
    half.mkdir(parents=True)
    (half / "spec.json").touch()
    copy_record(record, target)
    Record(target).check()
    assert [*target.parent.iterdir()] == [target]
    elsewhere = target.rename(tmp_path / "elsewhere")
    target.symlink_to(elsewhere)
    copy_record(record, target)
    assert not target.is_symlink()
    assert elsewhere.is_dir()


def test_what_a_record_was_made_on_is_known_for_each_kind(tmp_path):
    recipe, digits = Recipe(epochs=1, batch=16, lr=0.1), DatasetSpec(name="digits")
    teacher = Supervised(network="resnet8", dataset=digits, recipe=recipe)
    part = Adapter(parent=teacher, dataset=digits, term="ft", recipe=recipe)
    run = RunSpec(
        student="resnet8",
        teacher=teacher,
        terms=(WeightedTerm(name="ft"),),
        dataset=digits,
        recipe=recipe,
        adapters=(part,),
    )
    probe = ProbeSpec(source=StudentOf(run=run), dataset=digits, recipe=recipe)
    for kind, spec, expected in (
        ("teachers", teacher, ()), ("teachers", part, (teacher,)), ("runs", run, (teacher, part)),
        ("measurements", probe, (probe.source,)),
    ):  # fmt: skip
        record = Record(tmp_path / kind / spec.id)
        record.begin(spec.canonical())
        assert basis(record, kind) == expected
