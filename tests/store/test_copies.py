"""A record is copied file by file: what else lies in its folder, links and devices stay behind."""

import os

import pytest

from kdbench.errors import BadRecord
from kdbench.files import file_hash
from kdbench.store.exchange import check_copyable, copy_record
from kdbench.store.record import Record
from kdbench.store.result import Result
from kdbench.suite.specs import digest


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
